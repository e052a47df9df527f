"""The environment of other projects' clients, and a server over fakes for them to call."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal

from serving.core.caller import Role
from tests.support.app import Platform, fake_platform

_ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "clients"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A platform over fakes that answers on loopback, its OpenAPI document, and an admin's key."""

    url: str
    key: str
    platform: Platform
    document: dict[str, Any]


@pytest.fixture(scope="session")
def environment() -> Path:
    """Return the folder of the clients' environment; without it skip the test, or fail under `CI=true`."""
    if not (_ENVIRONMENT / ".installed").exists():
        _skip("needs the clients of other projects: make .cache/clients/.installed")
    return _ENVIRONMENT


@pytest.fixture(scope="session")
def node_modules(environment: Path) -> Path:
    """Return the folder of the JavaScript clients; without it skip the test, for npm isn't everywhere."""
    modules = environment / "node_modules"
    if not modules.is_dir() or shutil.which("node") is None:
        pytest.skip("needs node and npm: rm -r .cache/clients; make .cache/clients/.installed")
    return modules


def skip_without(environment: Path, package: str) -> None:
    """Skip the test, or fail under `CI=true`, if this client isn't installed: not every Python has it."""
    if not list(environment.glob(f"lib/python*/site-packages/{package}/__init__.py")):
        _skip(
            f"needs {package}, which pip couldn't install: rm -r .cache/clients; make .cache/clients/.installed"
        )


def _skip(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Serve a platform over fakes; its document lies in `tmp_path/openapi.json`."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(fake_platform()) as platform,
    ):
        server = uvicorn.Server(uvicorn.Config(platform.app, log_config=None, lifespan="off"))
        # A call that comes before the server runs waits in the socket's queue.
        running = portal.start_task_soon(server.serve, [listening])
        document = platform.app.openapi()
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        yield Served(
            url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            key=platform.keys[Role.ADMIN].text,
            platform=platform,
            document=document,
        )
        server.should_exit = True
        running.result()
