"""Fixtures of every test, the two tiers of the suite, and the groups that run side by side."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import breadth
from tests.support.postgres import TestServer, running_server
from tests.support.tracking import tracking_server

TESTS = Path(__file__).parent
# Live platforms come first, because they run one after another: `fresh` builds the encoders that the others use; in
# `hurt` and `versions`, times count. Integration tests that need the built encoders come last of theirs.
ORDER = (
    "acceptance/fresh",
    # While the platform has few texts to measure and to embed again.
    "acceptance/versions/test_promotions.py",
    "acceptance/versions/test_spaces.py",
    "acceptance/versions",
    "acceptance/hurt",
    "acceptance/watched",
    "acceptance",
    "integration/registry/store/test_huggingface_import.py",
    "integration/db",
    "integration",
    "unit",
)

settings.register_profile(
    breadth.CI, max_examples=breadth.examples(100, full=False), derandomize=True, database=None, deadline=None
)
settings.register_profile(breadth.FULL, max_examples=100, deadline=None, print_blob=True)
# By hand: `pytest --hypothesis-profile=long tests/integration/db/embeddings/test_interleavings.py`.
settings.register_profile("long", max_examples=100, stateful_step_count=40, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="also run slow tests, and property tests and simulations in full"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tiny models are quicker on one thread, above all with two workers on two cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    breadth.choose(full=config.getoption("full"))
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile(breadth.FULL if config.getoption("full") else breadth.CI)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests to the full tier, and put the others in order."""
    if not config.getoption("full"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if not item.get_closest_marker("slow")]
    items.sort(key=rank)
    repeated = [nodeid for nodeid, count in Counter(item.nodeid for item in items).items() if count > 1]
    if repeated:
        raise pytest.UsageError(f"several tests have one id, of which pytest-xdist would run one: {repeated}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their place, not by what they hold: compressed ones hold the time, and workers must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.support.scheduling import GroupScheduling

    return GroupScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say where the time went, by folder, if the slowest tests are asked for too."""
    if config.getoption("durations") is None:
        return
    seconds: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds["/".join(report.nodeid.split("::")[0].split("/")[1:3])] += report.duration
    terminalreporter.section("seconds by folder")
    for folder, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:7.1f}  {folder}")


def rank(item: pytest.Item) -> int:
    """Return when a test is run, by the most exact entry of the order."""
    path = item.path.relative_to(TESTS)
    fitting = [entry for entry in ORDER if path.is_relative_to(entry)]
    return ORDER.index(max(fitting, key=len)) if fitting else len(ORDER)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[TestServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def url(server: TestServer) -> Iterator[str]:
    with server.database() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def mlflow_url() -> Iterator[str]:
    with tracking_server() as url:
        yield url
