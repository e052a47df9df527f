"""The cost of kills: at most the requests in flight."""

import threading
from pathlib import Path
from typing import Self

import httpx
import psycopg

from db.embedded.server import EmbeddedPostgres
from tests.support.clock import eventually
from tests.support.live import LivePlatform


class Load:
    """Clients that predict and give feedback until they are stopped; they keep what was acknowledged."""

    def __init__(self, platform: LivePlatform, clients: int = 8) -> None:
        self._platform = platform
        self._ended = threading.Event()
        self.predicted: dict[str, str] = {}
        self.judged: list[str] = []
        self.refusals: list[httpx.Response] = []
        self.wrong: list[httpx.Response] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: int) -> None:
        number = 0
        with self._platform.client() as client:
            while not self._ended.is_set():
                number += 1
                try:
                    self._one(client, f"Client {worker} likes round {number} of {id(self)}.")
                except httpx.HTTPError:
                    self._ended.wait(0.05)

    def _one(self, client: httpx.Client, text: str) -> None:
        response = client.post("/v1/predict", json={"text": text})
        if response.status_code != 201:
            (self.refusals if response.status_code in (429, 503) else self.wrong).append(response)
            self._ended.wait(0.02)
            return
        prediction = response.json()["id"]
        self.predicted[prediction] = text
        judged = client.post("/v1/feedback", json={"prediction_id": prediction, "is_correct": True})
        if judged.status_code == 201:
            self.judged.append(prediction)

    def wait_for(self, more: int) -> None:
        """Wait until this many more predictions are acknowledged."""
        target = len(self.predicted) + more
        eventually(lambda: len(self.predicted) >= target, within=60, what=f"{more} more answers")


def assert_all_stored(platform: LivePlatform, load: Load) -> None:
    with psycopg.connect(EmbeddedPostgres(platform.home).url("valence")) as connection:
        texts = dict(
            connection.execute(
                "SELECT p.id::text, t.content FROM predictions p JOIN text_inputs t ON t.id = p.text_id "
                "JOIN embeddings e ON e.text_id = t.id WHERE p.id = ANY(%s)",
                (list(load.predicted),),
            ).fetchall()
        )
        judged = connection.execute(
            "SELECT count(*) FROM feedback WHERE prediction_id = ANY(%s)", (load.judged,)
        ).fetchone()
    assert texts == load.predicted
    assert judged == (len(load.judged),)


def assert_refusals_say_when_to_come_back(load: Load) -> None:
    assert load.wrong == []
    for refusal in load.refusals:
        assert refusal.headers["Content-Type"] == "application/problem+json"
        assert int(refusal.headers["Retry-After"]) >= 1


def test_a_killed_encoder_replica_costs_at_most_its_requests_in_flight(hurt: LivePlatform) -> None:
    with Load(hurt) as load:
        load.wait_for(50)
        (replica,) = hurt.find_processes("ServeReplica:encoder-")
        replica.kill()
        load.wait_for(50)
    assert_refusals_say_when_to_come_back(load)
    assert_all_stored(hurt, load)


def test_while_postgres_is_dead_nothing_is_acknowledged_and_service_resumes_by_itself(
    hurt: LivePlatform,
) -> None:
    with Load(hurt) as load:
        load.wait_for(50)
        postmaster = min(hurt.find_processes("postgres -D"), key=lambda process: process.create_time())
        postmaster.kill()
        eventually(lambda: bool(load.refusals), within=20, what="a prediction is refused")
        load.wait_for(50)
    assert_refusals_say_when_to_come_back(load)
    assert_all_stored(hurt, load)


def test_everything_killed_at_once_loses_nothing_that_was_acknowledged(hurt: LivePlatform) -> None:
    with Load(hurt) as load:
        load.wait_for(100)
        for process in hurt.processes():
            if process.is_running():
                process.kill()
    hurt.up()
    assert load.wrong == []
    assert_all_stored(hurt, load)
    with hurt.client() as client:
        assert client.post("/v1/predict", json={"text": "back again"}).status_code == 201


def test_down_leaves_no_process_and_keeps_the_data(hurt: LivePlatform) -> None:
    hurt.down()
    eventually(lambda: not hurt.processes(), within=10, what="every process has ended")
    assert (Path(hurt.home) / "postgres" / "data").exists()
