"""The embedding spaces: fakes and PostgreSQL alike."""

from uuid import uuid4

import pytest

from db.embeddings.spaces import Space, SpaceState
from db.errors import Conflict, NotFound
from tests.support.postgres import SPACE
from tests.support.repositories import Repositories

pytestmark = pytest.mark.anyio


async def test_one_space_is_live_and_one_more_is_built(repositories: Repositories) -> None:
    spaces, actor = repositories.spaces, uuid4()
    assert list((await spaces.states()).items()) == [(SPACE, SpaceState.LIVE)]
    with pytest.raises(Conflict):
        await spaces.begin(SPACE, actor=actor)
    await spaces.begin("next", actor=actor)
    await spaces.begin("next", actor=actor)
    with pytest.raises(Conflict):
        await spaces.begin("another", actor=actor)
    live, building = await spaces.list()
    assert type(building) is Space
    assert (live.name, live.state, live.vectors, live.live_at is None) == (SPACE, SpaceState.LIVE, 0, False)
    assert (building.name, building.state, building.vectors) == ("next", SpaceState.BUILDING, 0)
    assert (building.live_at, building.pace, building.seen_at, building.reason) == (None,) * 4
    assert await spaces.record_obstacle("next", "its encoder can't start")
    assert not await spaces.record_obstacle("unknown", "none")
    _, building = await spaces.list()
    assert building.reason == "its encoder can't start"
    assert building.seen_at is not None
    entries = (await repositories.audit.list()).items
    assert [(each.action, each.subject, each.actor, each.detail) for each in entries] == [
        ("space.begin", "next", actor, {})
    ]


async def test_a_switch_keeps_the_former_space_for_a_while(repositories: Repositories) -> None:
    spaces, actor = repositories.spaces, uuid4()
    await spaces.switch(SPACE, actor=actor)
    await spaces.begin("a", actor=actor)
    await spaces.switch("a", actor=actor)
    await spaces.switch("a", actor=actor)
    assert list((await spaces.states()).items()) == [("a", SpaceState.LIVE), (SPACE, SpaceState.WHOLE)]
    live, former = await spaces.list()
    assert live.live_at > former.live_at
    with pytest.raises(Conflict, match="live a moment ago"):
        await spaces.leave(SPACE, actor=actor)
    with pytest.raises(Conflict, match="is live"):
        await spaces.leave("a", actor=actor)
    for act in (spaces.switch, spaces.leave):
        with pytest.raises(NotFound):
            await act("unknown", actor=actor)
    await spaces.switch(SPACE, actor=actor)
    entries = (await repositories.audit.list()).items
    assert [(each.action, each.subject, each.detail) for each in entries] == [
        ("space.switch", SPACE, {"before": "a"}),
        ("space.switch", "a", {"before": SPACE}),
        ("space.begin", "a", {}),
    ]


async def test_a_leaving_space_is_neither_built_nor_switched_to(repositories: Repositories) -> None:
    spaces = repositories.spaces
    await spaces.begin("next", actor=None)
    await spaces.leave("next", actor=None)
    await spaces.leave("next", actor=None)
    assert list((await spaces.states()).items()) == [(SPACE, SpaceState.LIVE), ("next", SpaceState.LEAVING)]
    for act in (spaces.begin, spaces.switch):
        with pytest.raises(Conflict):
            await act("next", actor=None)
    with pytest.raises(Conflict):
        await spaces.begin("another", actor=None)
    entries = (await repositories.audit.list()).items
    assert [each.action for each in entries] == ["space.leave", "space.begin"]
