"""Users and keys: unique, owned, revoked once, and every act in the audit log."""

import hashlib
from datetime import timedelta
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.accounts.keys import KeyRepository, NewKey
from db.accounts.users import UserRepository
from db.connection.engine import Database
from db.errors import Duplicate, NotFound, Rejected
from tests.support.row_factories import count_rows, new_key, now

pytestmark = pytest.mark.anyio


async def test_a_user_is_created_read_and_unique_whatever_the_case(database: Database) -> None:
    users = UserRepository(database)
    user = await users.create(username="Ada", email="ada@example.org", actor=None)
    assert await users.get(user.id) == user
    assert await users.exists(user.id)
    assert not await users.exists(uuid4())
    with pytest.raises(Duplicate, match="username"):
        await users.create(username="ADA", email="other@example.org", actor=None)
    with pytest.raises(Duplicate, match="e-mail"):
        await users.create(username="other", email="Ada@Example.org", actor=None)
    with pytest.raises(NotFound):
        await users.get(uuid4())
    assert await count_rows(database, "users") == await count_rows(database, "audit_log") == 1


async def test_a_key_belongs_to_its_owner_or_to_itself(database: Database) -> None:
    user = await UserRepository(database).create(username="u", email="u@example.org", actor=None)
    owned, free = await new_key(database, owner_id=user.id), await new_key(database)
    assert owned.holder_id == user.id
    assert free.holder_id == free.id
    keys = KeyRepository(database)
    assert await keys.list(owner_id=user.id) == (owned,)
    assert await keys.list() == (owned, free)
    assert await keys.find(free.id) == free
    assert await keys.find(uuid4()) is None


async def test_a_key_of_nobody_known_twice_or_without_sense_is_refused(database: Database) -> None:
    digest = hashlib.sha256(b"key").digest()
    keys = KeyRepository(database)

    def key(**changes: object) -> NewKey:
        values = {"id": uuid4(), "digest": digest, "role": "client", "name": "n"}
        return NewKey(**(values | changes))  # type: ignore[arg-type]

    with pytest.raises(NotFound):
        await keys.create(key(owner_id=uuid4()), actor=None)
    with pytest.raises(Rejected):
        await keys.create(key(role="root"), actor=None)
    with pytest.raises(Rejected):
        await keys.create(key(digest=b"short"), actor=None)
    await keys.create(key(), actor=None)
    with pytest.raises(Duplicate):
        await keys.create(key(), actor=None)
    assert await count_rows(database, "audit_log") == 1


async def test_a_revoked_key_stays_as_a_record_and_is_revoked_once(database: Database) -> None:
    admin, key = await new_key(database, role="admin"), await new_key(database)
    keys = KeyRepository(database)
    first = await keys.revoke(key.id, actor=admin.id)
    assert first.revoked_at is not None
    assert await keys.revoke(key.id, actor=admin.id) == first
    with pytest.raises(NotFound):
        await keys.revoke(uuid4(), actor=admin.id)
    entries = (await AuditRepository(database).list(AuditFilters(subject=str(key.id)))).items
    assert [(entry.action, entry.actor) for entry in entries] == [
        ("key.revoke", admin.id),
        ("key.create", None),
    ]


async def test_the_last_use_of_a_key_never_steps_back(database: Database) -> None:
    key = await new_key(database)
    keys = KeyRepository(database)
    late = now()
    await keys.touch({key.id: late})
    await keys.touch({key.id: late - timedelta(hours=1), uuid4(): late})
    result = await keys.find(key.id)
    assert result is not None
    assert result.last_used_at == late
