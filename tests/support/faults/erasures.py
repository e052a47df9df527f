"""The fault of users who leave: their data is erased while their shadows are still computed.

Looks by SQL for what is left, because a fault may be in what counts and shows it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from threading import Event, Lock, Thread
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import psycopg

from registry.store.model_registry import MODEL
from tests.support.clock import eventually
from tests.support.faults.clients import judged
from tests.support.faults.ledger import Kind, Ledger
from tests.support.faults.proof import database
from tests.support.faults.texts import texts
from tests.support.live import LivePlatform

USERS: Final = 3
BATCH: Final = 100
_CHALLENGER: Final = "2"
_START_SECONDS: Final = 180.0
_PAUSE_SECONDS: Final = 0.1
# Longer than a shadow waits.
_SETTLED_SECONDS: Final = 35.0
_LEFT: Final = """
    SELECT (SELECT count(*) FROM predictions WHERE user_id = ANY(%(users)s))
        + (SELECT count(*) FROM text_inputs WHERE id = ANY(%(texts)s))
        + (SELECT count(*) FROM embeddings WHERE text_id = ANY(%(texts)s))"""
_SHADOWS: Final = "SELECT count(*) FROM predictions WHERE experiment_id = %s AND arm = 'shadow'"


class _Leavers:
    """Users who predict a batch and have their data erased at once, one after another in each thread."""

    def __init__(self, platform: LivePlatform, ledger: Ledger) -> None:
        self._platform = platform
        self._ledger = ledger
        self._ended = Event()
        self._lock = Lock()
        self._users: list[UUID] = []
        self._texts: list[UUID] = []
        self._threads = [Thread(target=self._leave, name="leavers") for _ in range(USERS)]

    def start(self) -> None:
        """Let the first ones come."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let no more come, and wait for those who are there."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def look_again(self) -> None:
        """Look for what is left of everyone who left; each row that is there counts as a failure."""
        for _ in range(self._count_left(self._users, self._texts)):
            self._ledger.ended(Kind.FAILED, "erased, and there later")

    def _leave(self) -> None:
        with self._platform.client() as client:
            while not self._ended.is_set():
                try:
                    self._leave_once(client)
                except httpx.HTTPError as error:
                    self._ledger.ended(Kind.FAILED, type(error).__name__)

    def _leave_once(self, client: httpx.Client) -> None:
        name = uuid4().hex
        user = self._ask(client, "POST", "/v1/users", username=name, email=f"{name}@example.org")
        if user is None:
            return
        batch = list(islice(texts(uuid4().int), BATCH))
        answer = self._ask(client, "POST", "/v1/predict/batch", texts=batch, user_id=user["id"])
        if answer is None:
            return
        # At once: the shadow of the batch isn't there yet.
        while self._ask(client, "DELETE", f"/v1/users/{user['id']}/data") is None:
            time.sleep(_PAUSE_SECONDS)
        users, ids = [UUID(user["id"])], [UUID(each["text_id"]) for each in answer["predictions"]]
        if self._count_left(users, ids):
            self._ledger.ended(Kind.FAILED, "erased, and still there")
        with self._lock:
            self._users += users
            self._texts += ids

    def _ask(self, client: httpx.Client, method: str, path: str, **body: Any) -> dict[str, Any] | None:
        """Return what is answered; note a refusal, wait a little and return None."""
        answer = client.request(method, path, json=body or None)
        if answer.is_success:
            found: dict[str, Any] = answer.json()
            return found
        self._ledger.ended(*judged(answer))
        time.sleep(_PAUSE_SECONDS)
        return None

    def _count_left(self, users: list[UUID], ids: list[UUID]) -> int:
        with psycopg.connect(database(self._platform)) as connection:
            row = connection.execute(_LEFT, {"users": users, "texts": ids}).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def erasure_during_shadows(platform: LivePlatform, ledger: Ledger) -> Iterator[None]:
    """Shadow every text while users predict a batch and leave; what is left of them counts as failed."""
    with platform.client() as client:
        experiment = _start_experiment(client)
        leavers = _Leavers(platform, ledger)
        leavers.start()
        try:
            yield
        finally:
            leavers.stop()
            client.post(f"/v1/experiments/{experiment}/stop", json={"reason": "the fault is over"})
        time.sleep(_SETTLED_SECONDS)
        leavers.look_again()
    with psycopg.connect(database(platform)) as connection:
        shadows = connection.execute(_SHADOWS, (experiment,)).fetchone()
    if shadows is None or not shadows[0]:
        raise RuntimeError("nothing was shadowed")


def _start_experiment(client: httpx.Client) -> str:
    """Shadow all texts by another version, and return the experiment's id once that version is ready."""
    body = {"model": MODEL, "challenger": _CHALLENGER, "share": 1, "shadow": True}
    response = client.post("/v1/experiments", json=body)
    response.raise_for_status()

    def is_ready() -> bool:
        versions = client.get(f"/v1/models/{MODEL}").json()["versions"]
        return any(each["version"] == _CHALLENGER and each["state"] == "ready" for each in versions)

    eventually(is_ready, within=_START_SECONDS, what="the challenger is ready")
    return str(response.json()["id"])
