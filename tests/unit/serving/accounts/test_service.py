"""Users and keys: what administrators can do, and what the audit log records."""

from uuid import uuid4

import pytest

from serving.accounts.authentication import Authenticator, digest_key
from serving.accounts.service import AccountService, KeySpec
from serving.accounts.tokens import TokenSigner
from serving.core.caller import Caller, Role
from serving.errors import Conflict, Invalid, NotFound, StoreUnavailable, Unauthenticated
from tests.fakes.accounts import FakeKeyRepository, FakeUserRepository
from tests.fakes.store import FakeStore

pytestmark = pytest.mark.anyio
ADMIN = Caller(key_id=uuid4(), holder_id=uuid4(), role=Role.ADMIN)


class World:
    def __init__(self) -> None:
        self.store = FakeStore()
        keys = FakeKeyRepository(self.store)
        self.authenticator = Authenticator(keys, tokens=TokenSigner([b"k" * 32], audience="tests"))
        self.accounts = AccountService(
            users=FakeUserRepository(self.store), keys=keys, authenticator=self.authenticator
        )


@pytest.fixture
def world() -> World:
    return World()


async def test_a_key_is_stored_as_its_digest_and_authenticates_its_owner(world: World) -> None:
    user = await world.accounts.add_user("ada", "ada@example.org", ADMIN)
    issued = await world.accounts.add_key(KeySpec(role=Role.CLIENT, name="shop", user_id=user.id), ADMIN)
    assert issued.record.digest == digest_key(issued.text)
    assert issued.text not in repr(issued)
    caller = await world.authenticator.check(issued.text)
    assert (caller.holder_id, caller.role) == (user.id, Role.CLIENT)
    assert {entry.actor for entry in world.store.audit} == {ADMIN.key_id}


async def test_a_key_for_an_unknown_owner_is_invalid_by_field(world: World) -> None:
    with pytest.raises(Invalid) as refused:
        await world.accounts.add_key(KeySpec(role=Role.CLIENT, name="shop", user_id=uuid4()), ADMIN)
    assert [problem.loc for problem in refused.value.problems] == [("body", "user_id")]
    assert await world.accounts.list_keys() == ()


async def test_a_revoked_key_is_refused_here_at_once(world: World) -> None:
    issued = await world.accounts.add_key(KeySpec(role=Role.CLIENT, name="shop"), ADMIN)
    await world.authenticator.check(issued.text)
    await world.accounts.revoke_key(issued.record.id, ADMIN)
    await world.accounts.revoke_key(issued.record.id, ADMIN)
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(issued.text)


async def test_a_second_user_of_the_same_name_conflicts_whatever_its_case(world: World) -> None:
    await world.accounts.add_user("ada", "ada@example.org", ADMIN)
    with pytest.raises(Conflict):
        await world.accounts.add_user("Ada", "other@example.org", ADMIN)


async def test_what_is_not_there_is_not_found_and_an_outage_is_an_outage(world: World) -> None:
    with pytest.raises(NotFound):
        await world.accounts.get_user(uuid4())
    with pytest.raises(NotFound):
        await world.accounts.revoke_key(uuid4(), ADMIN)
    world.store.down = True
    with pytest.raises(StoreUnavailable):
        await world.accounts.list_keys()
