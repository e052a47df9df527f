"""Logs: JSON lines that name process, request and batch, immediately and never with text."""

import io
import json
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import structlog

from serving.core.logs import REQUEST_ID, configure_logging
from serving.errors import NotReady
from serving.inference.dispatcher import InferenceItem
from serving.inference.messages import InferenceReply, InferenceRequest
from serving.inference.replica import Replica
from serving.inference.replica_client import ReplicaClient
from tests.support.app import fake_platform


@pytest.fixture
def lines(tmp_path: Path) -> Iterator["Lines"]:
    file = tmp_path / "log"
    root = list(logging.getLogger().handlers)
    configure_logging("info", process="test", file=file, replica="r1")
    yield Lines(file)
    structlog.get_config()["logger_factory"]._file._stream.close()
    structlog.reset_defaults()
    logging.getLogger().handlers = root


class Lines:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, event: str | None = None) -> Sequence[dict[str, object]]:
        results = [json.loads(line) for line in self._file.read_text().splitlines()]
        return [line for line in results if event is None or line["event"] == event]


def test_a_line_says_where_it_comes_from_and_is_there_at_once(lines: Lines) -> None:
    structlog.get_logger().info("something", id=7)
    (line,) = lines("something")
    assert (line["process"], line["replica"], line["level"], line["id"]) == ("test", "r1", "info", 7)
    assert {"pid", "timestamp"} <= line.keys()


def test_what_a_library_warns_of_is_a_line_too(lines: Lines) -> None:
    logging.getLogger("some.library").warning("pool %s is empty", "writers")
    (line,) = lines("library")
    assert (line["logger"], line["message"]) == ("some.library", "pool writers is empty")


def test_a_replica_does_not_write_to_what_ray_puts_in_the_place_of_standard_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, real = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", kept)
    monkeypatch.setattr(sys, "__stderr__", real)
    root = list(logging.getLogger().handlers)
    configure_logging("info", process="test")
    structlog.get_logger().info("something")
    structlog.reset_defaults()
    logging.getLogger().handlers = root
    assert (kept.getvalue(), json.loads(real.getvalue())["event"]) == ("", "something")


@pytest.mark.anyio
async def test_a_line_within_a_request_bears_its_id(lines: Lines) -> None:
    async with fake_platform() as platform, platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good"}, headers={"X-Request-Id": "mine"})
        await client.get("/no/such/path", headers={"X-Request-Id": "lost"})
    assert answer.status_code == 201
    assert [line["request_id"] for line in lines("request")] == ["lost"]
    assert REQUEST_ID.get() is None


class Gone:
    async def infer(self, question: InferenceRequest) -> InferenceReply:
        raise NotReady("the encoder replica is gone: send again")


@pytest.mark.anyio
async def test_a_lost_batch_names_the_requests_in_it(lines: Lines) -> None:
    asks = [InferenceItem(text=f"secret {n}", record=None, request_id=f"r{n % 2}") for n in range(4)]
    await ReplicaClient(Gone()).infer(asks, bulk=False)
    (line,) = lines("batch.failed")
    assert line["requests"] == ["r0", "r1"]
    assert line["batch"]
    assert "secret" not in json.dumps(line)


class Broken:
    """An encoder that fails for every text."""

    settings = SimpleNamespace(dimensions=4)

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[NoReturn]:
        raise RuntimeError("nothing can be read")
        yield


@pytest.mark.anyio
async def test_a_replicas_fault_is_followed_to_the_request_by_the_batch(lines: Lines) -> None:
    encoders = ReplicaClient(Replica(Broken(), lambda _: Path("/nowhere")))
    await encoders.infer([InferenceItem(text="boom", record=None, request_id="mine")], bulk=False)
    replica, ingress = lines("batch.faults")
    assert replica["batch"] == ingress["batch"]
    assert (ingress["requests"], replica["text_faults"]) == (["mine"], 1)
    assert "boom" not in json.dumps(replica)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    root = list(logging.getLogger().handlers)
    configure_logging("info", process="test", file=Path("/dev/full"))
    structlog.get_logger().error("x" * 100_000)
    structlog.get_logger().error("again")
    with suppress(OSError):
        structlog.get_config()["logger_factory"]._file._stream.close()
    structlog.reset_defaults()
    logging.getLogger().handlers = root
