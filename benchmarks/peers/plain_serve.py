"""A plain Ray Serve application: FastAPI, a model with `@serve.batch`, Ray's own proxy; stores nothing.

`python -m benchmarks.peers.plain_serve PORT ENCODER HEAD`.
"""

import signal
import sys
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.peers.model import MAX_BATCH, PlainModel

BATCH_WAIT_SECONDS = 0.005

api = FastAPI()


class Ask(BaseModel):
    """One text."""

    text: str


@serve.deployment(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 1})
class Sentiment:
    """The model."""

    def __init__(self, encoder: str, head: str) -> None:
        self._model = PlainModel(encoder, head)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """All at once."""
        return self._model(texts)


@serve.deployment(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0.5})
@serve.ingress(api)
class Ingress:
    """The HTTP ingress."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @api.post("/predict")
    async def predict(self, ask: Ask) -> dict[str, Any]:
        """One text."""
        answer: dict[str, Any] = await self._model.predict.remote(ask.text)
        return answer


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Ingress.bind(Sentiment.bind(*sys.argv[2:4])))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
