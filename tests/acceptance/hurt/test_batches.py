"""A batch that is lost with its replica: the log names every request in it."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.clock import eventually
from tests.support.live import LivePlatform

_STREAMS = 3


class BatchLoad:
    """Requests of a hundred texts, three at a time; counts them, and notes those that were lost with a replica."""

    def __init__(self, platform: LivePlatform) -> None:
        self._platform = platform
        self._done = threading.Event()
        self._begun: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.lost: set[str] = set()

    @property
    def begun(self) -> int:
        """The number of requests that were begun."""
        return self._begun.total()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests until the block ends; an assertion that fails in it tells how they were answered."""
        streams = [threading.Thread(target=self._send, args=(f"load{number}",)) for number in range(_STREAMS)]
        for stream in streams:
            stream.start()
        try:
            yield
        except AssertionError as error:
            error.add_note(f"the answers: {self.answers}")
            raise
        finally:
            self._done.set()
            for stream in streams:
                stream.join()

    def _send(self, name: str) -> None:
        with self._platform.client() as client:
            for number in itertools.count(1):
                if self._done.is_set():
                    return
                self._begun[name] = number
                request = f"{name}-{number}"
                try:
                    answer = client.post(
                        "/v1/predict/batch",
                        json={"texts": [f"{request} {each}" for each in range(100)]},
                        headers={"X-Request-Id": request},
                    )
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1
                    continue
                self.answers["" if answer.is_success else f"{answer.status_code} {answer.text}"] += 1
                if answer.status_code == 503 and "is gone" in answer.text:
                    self.lost.add(request)


def test_a_batch_that_its_replica_takes_along_is_followed_to_its_requests(hurt: LivePlatform) -> None:
    load = BatchLoad(hurt)

    def is_one_lost() -> bool:
        # A request may have stood still on its way to an encoder, and then the next encoder answers it.
        _kill_encoders_at_work(hurt, load)
        begun = load.begun
        eventually(
            lambda: bool(load.lost) or load.begun > begun + _STREAMS, within=60, what="requests are answered"
        )
        return bool(load.lost)

    with load.running():
        eventually(is_one_lost, within=120, what="a request was lost with its replica")

    def told() -> set[str]:
        failed = [line for line in hurt.log_lines() if line["event"] == "batch.failed"]
        return {request for line in failed for request in line["requests"]}

    eventually(lambda: load.lost <= told(), within=10, what="each of them stands in a line on its batch")
    hurt.wait_until_ready(120)


def _kill_encoders_at_work(platform: LivePlatform, load: BatchLoad) -> None:
    """Kill the encoders of the champion and of the space while every request waits for one of them."""
    begun = load.begun
    eventually(lambda: load.begun > begun + _STREAMS, within=60, what="the load is on")
    named = {line["pid"] for line in platform.log_lines() if line.get("process") == "encoder"}
    encoders = [process for process in platform.processes() if process.pid in named]
    for process in encoders:
        process.suspend()
    seen = [load.begun]

    def stands_still() -> bool:
        seen.append(load.begun)
        return seen[-20:].count(seen[-1]) == 20

    eventually(stands_still, within=60, what="every request waits for an encoder")
    for process in encoders:
        process.kill()
