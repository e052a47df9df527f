"""The audit log: appended, listed newest first by filters and in pages."""

from datetime import timedelta
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository, append
from db.connection.engine import Database
from db.errors import Rejected

pytestmark = pytest.mark.anyio


async def test_entries_are_listed_newest_first_by_every_filter(database: Database) -> None:
    audit, ada, bob = AuditRepository(database), uuid4(), uuid4()
    for actor, action, subject in ((ada, "a", "one"), (bob, "a", "two"), (ada, "b", "two")):
        async with database.begin() as connection:
            await append(connection, actor=actor, action=action, subject=subject, detail={"by": str(actor)})
    await audit.add(action="c", subject="three", detail={})
    fourth, third, second, first = (await audit.list()).items
    assert [entry.action for entry in (first, second, third, fourth)] == ["a", "a", "b", "c"]
    assert (first.actor, first.subject, first.detail) == (ada, "one", {"by": str(ada)})
    assert fourth.actor is None

    for filters, expected in (
        (AuditFilters(actor=ada), (third, first)),
        (AuditFilters(action="a"), (second, first)),
        (AuditFilters(subject="two"), (third, second)),
        (AuditFilters(since=second.at), (fourth, third, second)),
        (AuditFilters(until=second.at), (first,)),
        (AuditFilters(since=second.at, until=fourth.at), (third, second)),
        (AuditFilters(actor=ada, action="a", subject="one", since=first.at), (first,)),
        (AuditFilters(actor=ada, action="a", subject="two"), ()),
        (AuditFilters(since=fourth.at + timedelta(seconds=1)), ()),
    ):
        assert (await audit.list(filters)).items == expected


async def test_pages_go_through_every_entry_once(database: Database) -> None:
    audit = AuditRepository(database)
    for number in range(5):
        await audit.add(action="odd" if number % 2 else "even", subject=str(number), detail={})

    async def pages(filters: AuditFilters) -> list[list[str]]:
        page = await audit.list(filters, limit=2)
        subjects = [[entry.subject for entry in page.items]]
        while page.next_cursor is not None:
            page = await audit.list(filters, limit=2, cursor=page.next_cursor)
            subjects.append([entry.subject for entry in page.items])
        return subjects

    assert await pages(AuditFilters()) == [["4", "3"], ["2", "1"], ["0"]]
    assert await pages(AuditFilters(action="even")) == [["4", "2"], ["0"]]
    assert await pages(AuditFilters(action="odd")) == [["3", "1"]]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "9" * 19])
async def test_a_cursor_that_no_page_gave_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(Rejected, match="cursor"):
        await AuditRepository(database).list(cursor=cursor)
