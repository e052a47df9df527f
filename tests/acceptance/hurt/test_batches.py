"""A batch that is lost with its replica: the log names every request in it."""

import threading

import httpx

from tests.support.clock import eventually
from tests.support.live import LivePlatform


def test_a_batch_that_its_replica_takes_along_is_followed_to_its_requests(hurt: LivePlatform) -> None:
    refused: set[str] = set()
    results: dict[str, int] = {}
    done = threading.Event()

    def load(name: str) -> None:
        with hurt.client() as client:
            number = 0
            while not done.is_set():
                number += 1
                results[name] = number
                mine = f"{name}-{number}"
                texts = [f"{mine} {each}" for each in range(100)]
                try:
                    answer = client.post(
                        "/v1/predict/batch", json={"texts": texts}, headers={"X-Request-Id": mine}
                    )
                except httpx.HTTPError:
                    continue
                if answer.status_code == 503 and "is gone" in answer.text:
                    refused.add(mine)

    threads = [threading.Thread(target=load, args=(f"load{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(results) == len(threads), within=30, what="the load is on")
        # The encoders of the champion and of the space: the load needs one that can't answer from here on.
        named = {line["pid"] for line in hurt.log_lines() if line.get("process") == "encoder"}
        encoders = [process for process in hurt.processes() if process.pid in named]
        for process in encoders:
            process.suspend()
        seen = [dict(results)]

        def stands_still() -> bool:
            seen.append(dict(results))
            return seen[-20:].count(seen[-1]) == 20

        eventually(stands_still, within=60, what="every request waits for an encoder")
        for process in encoders:
            process.kill()
        eventually(lambda: bool(refused), within=60, what="a request was lost with its replica")
    finally:
        done.set()
        for thread in threads:
            thread.join()

    def told() -> set[str]:
        failed = [line for line in hurt.log_lines() if line["event"] == "batch.failed"]
        return {request for line in failed for request in line["requests"]}

    eventually(lambda: refused <= told(), within=10, what="each of them stands in a line on its batch")
    hurt.wait_until_ready(120)
