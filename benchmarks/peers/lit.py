"""LitServe with the same model and batch limit; stores nothing.

`python -m benchmarks.peers.lit PORT ENCODER HEAD [micro]`; `micro` gives it the platform's micro-batches as well.
"""

import sys
from typing import Any

import litserve

from benchmarks.peers.model import MAX_BATCH, Model, PlainModel

# A single request then doesn't wait, and under load batches fill while the one before is computed.
BATCH_TIMEOUT = 0.005


class Sentiment(litserve.LitAPI):
    """Texts in batches."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Open the model in the worker."""
        model = Model if sys.argv[4:] == ["micro"] else PlainModel
        self._model = model(*sys.argv[2:4])

    def decode_request(self, request: dict[str, Any]) -> str:
        """Return the text."""
        return str(request["text"])

    def batch(self, inputs: list[str]) -> list[str]:
        """Return the texts as they are."""
        return inputs

    def predict(self, x: list[str] | str) -> Any:
        """All at once."""
        return self._model([x])[0] if isinstance(x, str) else self._model(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers as they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer as it is."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Sentiment(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT),
        accelerator="cpu",
        workers_per_device=1,
        timeout=120,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
