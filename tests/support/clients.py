"""Clients of a live platform: they predict until they are stopped, and keep each answer."""

import threading
from typing import Any, Self

import httpx

from tests.support.clock import eventually
from tests.support.live import LivePlatform


class Clients:
    """Clients in parallel that predict one text after another until the block ends."""

    def __init__(self, platform: LivePlatform, count: int) -> None:
        self._platform = platform
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(count)]
        self.answers: list[dict[str, Any]] = []
        self.failures: list[object] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until this many more texts are answered."""
        target = len(self.answers) + more
        eventually(lambda: len(self.answers) >= target, within=60, what=f"{more} more answers")

    def _work(self, worker: int) -> None:
        number = 0
        with self._platform.client() as client:
            while not self._ended.is_set():
                number += 1
                try:
                    answer = client.post(
                        "/v1/predict",
                        json={"text": f"Round {number} of client {worker} went well, {id(self)}."},
                    )
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    continue
                if answer.status_code == 201:
                    self.answers.append(answer.json())
                else:
                    self.failures.append((answer.status_code, answer.text))
