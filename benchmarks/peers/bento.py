"""BentoML with the same model and batch limit; stores nothing.

It needs an environment of its own (`make .cache/bentoml/.installed`). Run there by
`python -m benchmarks.peers.bento PORT ENCODER HEAD`; a request is a list of one text, as BentoML's batching requires.
"""

import os
import sys
from typing import Any

import bentoml

MAX_BATCH = 64


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1_000})
class Sentiment:
    """The model, in one worker."""

    def __init__(self) -> None:
        from benchmarks.peers.model import PlainModel

        self._model = PlainModel(os.environ["BENCH_ENCODER"], os.environ["BENCH_HEAD"])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=120_000)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """All at once."""
        return self._model(texts)


if __name__ == "__main__":
    os.environ |= {"BENCH_ENCODER": sys.argv[2], "BENCH_HEAD": sys.argv[3], "BENTOML_DO_NOT_TRACK": "True"}
    serve = ["-m", "bentoml", "serve", "benchmarks.peers.bento:Sentiment", "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve, "--port", sys.argv[1]])
