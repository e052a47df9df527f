"""Users, keys and the audit log: fakes and PostgreSQL alike."""

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters
from db.accounts.keys import Key, NewKey
from db.accounts.users import User
from db.errors import Duplicate, NotFound, Rejected
from tests.support.repositories import Repositories

pytestmark = pytest.mark.anyio


async def test_users_are_unique_by_name_and_by_address(repositories: Repositories) -> None:
    users, actor = repositories.users, uuid4()
    ada = await users.create(username="Ada", email="ada@example.org", actor=actor)
    bob = await users.create(username="bob", email="Bob@Example.org", actor=None)
    assert type(ada) is User
    assert (ada.username, ada.email, bob.email) == ("Ada", "ada@example.org", "Bob@Example.org")
    assert ada.created_at <= bob.created_at
    assert bob.created_at.tzinfo is not None
    assert await users.get(ada.id) == ada
    assert [await users.exists(each) for each in (ada.id, bob.id, uuid4())] == [True, True, False]
    with pytest.raises(Duplicate, match="username exists"):
        await users.create(username="aDA", email="new@example.org", actor=None)
    with pytest.raises(Duplicate, match="e-mail address exists"):
        await users.create(username="new", email="bob@example.ORG", actor=None)
    with pytest.raises(Rejected):
        await users.create(username="a\0b", email="nul@example.org", actor=None)
    with pytest.raises(NotFound):
        await users.get(uuid4())
    entries = (await repositories.audit.list()).items
    assert [(each.action, each.subject, each.actor, each.detail) for each in entries] == [
        ("user.create", str(bob.id), None, {}),
        ("user.create", str(ada.id), actor, {}),
    ]


async def test_users_are_listed_by_the_beginning_of_their_name_and_in_pages(
    repositories: Repositories,
) -> None:
    users = repositories.users
    made = [
        await users.create(username=name, email=f"{number}@example.org", actor=None)
        for number, name in enumerate(("Ada", "bob", "adam", "100%", "100_"))
    ]
    assert (await users.list()).items == tuple(reversed(made))
    for name, found in (("AD", ["adam", "Ada"]), ("adam", ["adam"]), ("100%", ["100%"]), ("da", [])):
        page = await users.list(name=name)
        assert ([each.username for each in page.items], page.next_cursor) == (found, None), name
    first = await users.list(limit=3)
    rest = await users.list(limit=3, cursor=first.next_cursor)
    assert (*first.items, *rest.items) == tuple(reversed(made))
    assert rest.next_cursor is None
    of_two = await users.list(name="ad", limit=1)
    after = await users.list(name="ad", limit=1, cursor=of_two.next_cursor)
    assert [each.username for each in (*of_two.items, *after.items)] == ["adam", "Ada"]
    assert after.next_cursor is None
    for cursor in ("", "x", "-1"):
        with pytest.raises(Rejected):
            await users.list(cursor=cursor)


def new_key(name: str, **changes: object) -> NewKey:
    values = {"id": uuid4(), "digest": hashlib.sha256(name.encode()).digest(), "role": "client", "name": name}
    return NewKey(**(values | changes))  # type: ignore[arg-type]


async def test_keys_are_created_found_listed_and_revoked(repositories: Repositories) -> None:
    keys, actor = repositories.keys, uuid4()
    owner = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    own = await keys.create(
        new_key("own", owner_id=owner.id, role="admin", rate_limit=2.5, expires_at=ends), actor=actor
    )
    plain = await keys.create(new_key("plain"), actor=None)
    assert type(own) is Key
    assert (own.owner_id, own.role, own.rate_limit, own.expires_at) == (owner.id, "admin", 2.5, ends)
    assert (own.holder_id, plain.holder_id) == (owner.id, plain.id)
    assert (plain.revoked_at, plain.last_used_at, plain.rate_limit, plain.expires_at) == (None,) * 4
    assert await keys.find(own.id) == own
    assert await keys.find(uuid4()) is None
    assert await keys.list() == (own, plain)
    assert await keys.list(owner_id=owner.id) == (own,)
    assert await keys.list(owner_id=uuid4()) == ()
    revoked = await keys.revoke(plain.id, actor=actor)
    assert revoked.revoked_at is not None
    assert await keys.revoke(plain.id, actor=actor) == revoked
    assert await keys.find(plain.id) == revoked
    with pytest.raises(NotFound):
        await keys.revoke(uuid4(), actor=actor)
    entries = (await repositories.audit.list(AuditFilters(subject=str(plain.id)))).items
    assert [(each.action, each.actor, each.detail) for each in entries] == [
        ("key.revoke", actor, {}),
        ("key.create", None, {"role": "client"}),
    ]


async def test_keys_that_cant_be_stored_are_refused(repositories: Repositories) -> None:
    keys = repositories.keys
    first = await keys.create(new_key("first"), actor=None)
    with pytest.raises(Duplicate):
        await keys.create(new_key("other", id=first.id), actor=None)
    with pytest.raises(Duplicate):
        await keys.create(new_key("other", digest=first.digest), actor=None)
    with pytest.raises(NotFound, match="no user"):
        await keys.create(new_key("owned", owner_id=uuid4()), actor=None)
    with pytest.raises(Rejected):
        await keys.create(new_key("role", role="king"), actor=None)
    with pytest.raises(Rejected):
        await keys.create(new_key("short", digest=b"short"), actor=None)
    assert await keys.list() == (first,)


async def test_the_last_use_of_a_key_only_grows(repositories: Repositories) -> None:
    keys = repositories.keys
    key, other = [await keys.create(new_key(name), actor=None) for name in ("one", "two")]
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    await keys.touch({})
    await keys.touch({key.id: noon, uuid4(): noon})
    await keys.touch({key.id: noon - timedelta(hours=1), other.id: noon - timedelta(hours=1)})
    assert [each.last_used_at for each in await keys.list()] == [noon, noon - timedelta(hours=1)]


async def test_the_audit_log_is_listed_by_filters_and_in_pages(repositories: Repositories) -> None:
    audit, actor = repositories.audit, uuid4()
    for number in range(5):
        await audit.add(action=f"act.{number % 2}", subject=f"thing {number % 3}", detail={"number": number})
    key = await repositories.keys.create(new_key("key"), actor=actor)

    async def numbers(**filters: object) -> list[object]:
        page = await audit.list(AuditFilters(**filters))  # type: ignore[arg-type]
        assert page.next_cursor is None
        return [entry.detail.get("number") for entry in page.items]

    everything = (await audit.list()).items
    assert [each.actor for each in everything] == [actor, *[None] * 5]
    assert [each.at for each in everything] == sorted((each.at for each in everything), reverse=True)
    assert await numbers(action="act.1") == [3, 1]
    assert await numbers(subject="thing 0", action="act.1") == [3]
    assert await numbers(subject=str(key.id), actor=actor) == [None]
    assert await numbers(actor=uuid4()) == []
    middle = everything[3].at
    assert await numbers(since=middle) == [None, 4, 3, 2]
    assert await numbers(until=middle) == [1, 0]
    first = await audit.list(limit=4)
    rest = await audit.list(limit=4, cursor=first.next_cursor)
    assert (*first.items, *rest.items) == everything
    assert rest.next_cursor is None
    for cursor in ("", "x", "-1", "1" * 19):
        with pytest.raises(Rejected):
            await audit.list(cursor=cursor)
