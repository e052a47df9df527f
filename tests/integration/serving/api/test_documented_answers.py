"""The whole API against its own document, over a real database that is dropped afterwards.

No answer may be a server error, or have a status, a content type or a body that the document does not describe.
"""

import asyncio
from collections.abc import Iterator

import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serving.core.caller import Role
from tests.support import breadth
from tests.support.app import Platform, fake_platform, stored_platform
from tests.support.postgres import TestServer

# A schema can't say that these must name an existing thing, give a non-zero vector, or lie ahead.
PARTICULAR = ("user_id", "cursor", "embedding", "like", "unlike", "expires_at")
# Nor that the shares of a ramp rise, and that units don't become fewer.
ORDERED = ("ramp", "max_units")
# Nor that a window begins before it ends.
WINDOWS = (("since", "until"), ("reference_since", "reference_until"))


def beyond_the_document(case: schemathesis.Case) -> bool:
    """Return whether a request that fits its schema may be refused; a tensor's shape must fit its data."""
    given = {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}
    policy, filters = given.get("policy"), given.get("filters")
    timed = {**given, **(filters if isinstance(filters, dict) else {})}
    return (
        case.path.endswith("/infer")
        or any(given.get(name) is not None for name in PARTICULAR)
        or any(all(timed.get(name) is not None for name in window) for window in WINDOWS)
        or (isinstance(policy, dict) and any(policy.get(name) for name in ORDERED))
    )


class Forwarded:
    """The application in its database's event loop; until there is one, only the document."""

    def __init__(self) -> None:
        self.app: FastAPI | None = None
        self.portal: BlockingPortal | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("only HTTP is forwarded")
        if self.app is None or self.portal is None:
            async with fake_platform() as platform:
                await platform.app(scope, receive, send)
            return
        here = asyncio.get_running_loop()

        async def receive_there() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(receive), here))

        async def send_there(message: Message) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(send, message), here))

        await asyncio.wrap_future(self.portal.start_task_soon(self.app, scope, receive_there, send_there))


async def _awaited(call, *arguments):
    return await call(*arguments)


forwarded = Forwarded()
schemathesis.openapi.format("email", st.from_regex(r"[a-z]{1,10}@[a-z]{1,10}\.(org|com)", fullmatch=True))
schema = schemathesis.openapi.from_asgi("/openapi.json", forwarded)
schema.config.checks.negative_data_rejection.expected_statuses = ["400", "401", "404", "413", "415", "422"]


@pytest.fixture(scope="module")
def platform(server: TestServer) -> Iterator[Platform]:
    with (
        server.database() as url,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(stored_platform(url)) as running,
    ):
        forwarded.app, forwarded.portal = running.app, portal
        yield running
        forwarded.app = forwarded.portal = None


# Without a parameter of its own every case would have one id, and pytest-xdist runs each id once.
@pytest.mark.parametrize("role", [Role.ADMIN])
@schema.parametrize()
@settings(
    max_examples=breadth.chosen(5, 15),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_documented(case: schemathesis.Case, platform: Platform, role: Role) -> None:
    excluded = [schemathesis.checks.positive_data_acceptance] if beyond_the_document(case) else []
    case.call_and_validate(
        headers={"Authorization": f"Bearer {platform.keys[role].text}"}, excluded_checks=excluded
    )
