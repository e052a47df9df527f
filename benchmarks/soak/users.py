"""Everyday use of a platform, all at once: predictions, searches, feedback, erasures, and an engineer's work.

Each kind of user repeats one act with a pause until time is up, and counts the statuses that it got. Only for a
platform on this machine; the pauses bound the load.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any

import httpx

from registry.bundles.bundle import LABELS
from registry.store.model_registry import MODEL
from tests.support.faults.texts import texts
from tests.support.live import LivePlatform

ANSWER_SECONDS = 60.0
BATCH = 50
_RECENT = 500
_CANDIDATE, _CHALLENGER = "2", "1"
_ANALYSES = (
    "/v1/topics",
    "/v1/review",
    "/v1/drift",
    f"/v1/models/{MODEL}/diff?from={_CHALLENGER}&to={_CANDIDATE}",
)


class Users:
    """All users of one platform, with the statuses that each kind got and what went wrong.

    `faults` holds a line for each answer of 500 or more, each connection that failed, and each broken promise.
    """

    def __init__(self, platform: LivePlatform, seed: int = 0) -> None:
        self.statuses: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self.predictions = 0
        self._platform = platform
        self._random = random.Random(seed)
        self._texts: Iterator[str] = texts(seed)
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._experiment: str | None = None
        self._analyses = cycle(_ANALYSES)
        self._is_promoted = False

    async def use(self, seconds: float) -> None:
        """Use the platform for so long."""
        ends = time.monotonic() + seconds
        async with httpx.AsyncClient(
            base_url=self._platform.url,
            headers={"Authorization": f"Bearer {self._platform.key}"},
            timeout=ANSWER_SECONDS,
        ) as client:
            self._client = client
            await asyncio.gather(
                *(_repeat(self._predict, pause=0.25, ends=ends) for _ in range(3)),
                _repeat(self._predict_batch, pause=5, ends=ends),
                _repeat(self._judge, pause=0.5, ends=ends),
                _repeat(self._search, pause=1, ends=ends),
                _repeat(self._read, pause=1, ends=ends),
                _repeat(self._analyse, pause=30, ends=ends),
                _repeat(self._erase, pause=5, ends=ends),
                _repeat(self._change_champion, pause=60, ends=ends),
                _repeat(self._restart_experiment, pause=600, ends=ends),
                _repeat(self._evaluate, pause=900, ends=ends),
            )

    async def _ask(self, kind: str, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        """Send a request and count its status; return the answer if it is a 2xx."""
        counts = self.statuses.setdefault(kind, Counter())
        try:
            response = await self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            counts[type(error).__name__] += 1
            self.faults.append(f"{method} {path}: {type(error).__name__}")
            return None
        counts[str(response.status_code)] += 1
        if response.is_server_error:
            self.faults.append(f"{method} {path}: {response.status_code} {response.text[:200]}")
        return response if response.is_success else None

    async def _predict(self) -> None:
        response = await self._ask("predict", "POST", "/v1/predict", json={"text": next(self._texts)})
        if response is not None:
            self._keep([response.json()])

    async def _predict_batch(self) -> None:
        body = {"texts": [next(self._texts) for _ in range(BATCH)]}
        response = await self._ask("batch", "POST", "/v1/predict/batch", json=body)
        if response is not None:
            self._keep(response.json()["predictions"])

    def _keep(self, predictions: list[dict[str, Any]]) -> None:
        self.predictions += len(predictions)
        self._recent.extend(predictions)

    async def _judge(self) -> None:
        if not self._recent:
            return
        prediction = self._random.choice(self._recent)
        label = self._random.choice((prediction["sentiment"], *LABELS))
        body = {
            "prediction_id": prediction["id"],
            "is_correct": prediction["sentiment"] == label,
            "label": label,
        }
        await self._ask("feedback", "POST", "/v1/feedback", json=body)

    async def _search(self) -> None:
        if not self._recent:
            return
        id_ = self._random.choice(self._recent)["id"]
        path, body = self._random.choice(
            (
                ("/v1/similar", {"text": next(self._texts)}),
                ("/v1/similar", {"prediction_id": id_, "counts": True}),
                ("/v1/similar", {"text": next(self._texts), "keywords": "battery or hotel"}),
                ("/v1/similar", {"text": next(self._texts), "filters": {"sentiment": "negative"}}),
                ("/v1/duplicates", {"prediction_id": id_}),
            )
        )
        await self._ask("search", "POST", path, json=body)

    async def _read(self) -> None:
        if not self._recent:
            return
        id_ = self._random.choice(self._recent)["id"]
        paths = (
            f"/v1/predictions/{id_}",
            "/v1/predictions?limit=50",
            f"/v1/predictions/{id_}/second-opinion",
            f"/v1/models/{MODEL}",
            "/metrics",
        )
        await self._ask("read", "GET", self._random.choice(paths))

    async def _erase(self) -> None:
        """Erase a new user with some predictions; afterwards nothing of theirs may be found."""
        name = f"soak-{self._random.getrandbits(48):x}"
        body = {"username": name, "email": f"{name}@example.com"}
        user = await self._ask("erase", "POST", "/v1/users", json=body)
        if user is None:
            return
        id_ = user.json()["id"]
        for _ in range(3):
            fields = {"text": next(self._texts), "user_id": id_}
            if await self._ask("predict", "POST", "/v1/predict", json=fields) is not None:
                self.predictions += 1
        if await self._ask("erase", "DELETE", f"/v1/users/{id_}/data") is None:
            return
        left = await self._ask("erase", "GET", f"/v1/predictions?user_id={id_}")
        if left is not None and left.json()["items"]:
            self.faults.append(f"user {id_} was erased and has predictions")

    async def _analyse(self) -> None:
        await self._ask("analyse", "GET", next(self._analyses))

    async def _change_champion(self) -> None:
        """Promote the candidate and roll it back in turn."""
        if self._is_promoted:
            path, body = f"/v1/models/{MODEL}/rollback", {}
        else:
            path = f"/v1/models/{MODEL}/versions/{_CANDIDATE}/promote"
            body = {"force": True, "reason": "the soak changes the champion"}
        if await self._ask("promote", "POST", path, json=body) is not None:
            self._is_promoted = not self._is_promoted

    async def _restart_experiment(self) -> None:
        if self._experiment is not None:
            await self._ask("experiment", "GET", f"/v1/experiments/{self._experiment}")
            await self._ask("experiment", "POST", f"/v1/experiments/{self._experiment}/stop")
        body = {"model": MODEL, "challenger": _CHALLENGER, "share": 0.2}
        response = await self._ask("experiment", "POST", "/v1/experiments", json=body)
        self._experiment = None if response is None else response.json()["id"]

    async def _evaluate(self) -> None:
        await self._ask("evaluate", "POST", f"/v1/models/{MODEL}/versions/{_CANDIDATE}/evaluate")


async def _repeat(act: Callable[[], Awaitable[object]], *, pause: float, ends: float) -> None:
    while (left := ends - time.monotonic()) > 0:
        await asyncio.sleep(min(pause, left))
        if time.monotonic() < ends:
            await act()
