"""Calls from an ingress to the control's lifecycle: the allow-list, and the errors that come back."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from serving.control.lifecycle import REMOTE_METHODS, Lifecycle, LocalLifecycle
from serving.control.remote import call_lifecycle, connect_lifecycle
from serving.errors import Conflict, NotReady

pytestmark = pytest.mark.anyio

SECONDS = 30.0


class RecordingLifecycle:
    """Answers promotions and histories, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.has_answered = asyncio.Event()

    async def promote(self, *arguments: Any, **named: Any) -> str:
        await self.may_answer.wait()
        self.calls.append((arguments, named))
        self.has_answered.set()
        return "promoted"

    async def reconcile(self, model: str, champion: str | None) -> None:
        raise AssertionError("no remote caller may call this")


class FakeHandle:
    """A Serve handle whose replica is in this process and fails as Ray does."""

    def __init__(self, lifecycle: RecordingLifecycle, error: Exception | None = None) -> None:
        self._lifecycle = lifecycle
        self._error = error
        self.call_lifecycle = self

    async def remote(self, method: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if self._error is not None:
            raise self._error
        return await call_lifecycle(self._lifecycle, method, arguments, named)


def test_the_allow_list_is_the_protocol_and_the_local_lifecycle_has_it() -> None:
    methods = {name for name, value in vars(Lifecycle).items() if callable(value) and name[0] != "_"}
    assert methods == REMOTE_METHODS
    assert all(callable(getattr(LocalLifecycle, name)) for name in REMOTE_METHODS)


async def test_a_call_arrives_with_its_arguments_and_its_answer_comes_back() -> None:
    local = RecordingLifecycle()
    remote = connect_lifecycle(FakeHandle(local), seconds=SECONDS)
    assert await remote.promote("sentiment", "2", None, force=True, reason="why") == "promoted"
    assert local.calls == [(("sentiment", "2", None), {"force": True, "reason": "why"})]


@pytest.mark.parametrize("method", ["reconcile", "failed", "promote_by_policy", "__init__", "_audit"])
async def test_what_is_not_on_the_list_is_refused_at_both_ends(method: str) -> None:
    with pytest.raises(AttributeError, match="no remote method"):
        await call_lifecycle(RecordingLifecycle(), method, (), {})
    if not method.startswith("__"):
        with pytest.raises(AttributeError, match="no remote method"):
            getattr(connect_lifecycle(FakeHandle(RecordingLifecycle()), seconds=SECONDS), method)


async def test_an_error_of_the_control_is_raised_as_itself() -> None:
    cause = Conflict("a gate says no")
    remote = connect_lifecycle(
        FakeHandle(RecordingLifecycle(), RayTaskError("promote", "traceback", cause)), seconds=SECONDS
    )
    with pytest.raises(Conflict, match="a gate says no"):
        await remote.promote("sentiment", "2", None, force=False, reason=None)


async def test_a_control_that_is_gone_is_not_ready() -> None:
    remote = connect_lifecycle(FakeHandle(RecordingLifecycle(), RayActorError()), seconds=SECONDS)
    with pytest.raises(NotReady, match="send again"):
        await remote.history("sentiment", limit=1, cursor=None)


async def test_a_call_that_takes_long_is_refused_and_goes_on_at_the_control() -> None:
    local = RecordingLifecycle()
    local.may_answer.clear()
    remote = connect_lifecycle(FakeHandle(local), seconds=0.01)
    with pytest.raises(NotReady, match="goes on"):
        await remote.promote("sentiment", "2", None, force=True, reason="why")
    assert not local.calls
    local.may_answer.set()
    await asyncio.wait_for(local.has_answered.wait(), SECONDS)
    assert local.calls
