"""Predict by tritonclient in every form that it has; runs in the clients' environment.

Arguments: the host and port, a key. Writes what each form answered as JSON.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

TEXTS = ["so good", "it broke at once"]


def tensor(shape: Sequence[int] = (2,), *, binary: bool = True) -> Any:
    texts = np.array(TEXTS, dtype=np.object_).reshape(shape)
    each = triton.InferInput("text", list(shape), "BYTES")
    each.set_data_from_numpy(texts, binary_data=binary)
    return each


def labels(result: Any) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy("label").tolist()]


async def infer_asynchronously(address: str, headers: dict[str, str]) -> list[str]:
    async with triton_aio.InferenceServerClient(address) as client:
        return labels(await client.infer("sentiment", [tensor()], headers=dict(headers)))


def main(address: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    client = triton.InferenceServerClient(address)

    def infer(one: Any, **options: Any) -> Any:
        return client.infer("sentiment", [one], headers=dict(headers), **options)

    plain = [triton.InferRequestedOutput("label", binary_data=False)]
    mixed = [triton.InferRequestedOutput("embedding"), *plain, triton.InferRequestedOutput("score")]
    default, some = infer(tensor()), infer(tensor(), outputs=mixed, request_id="42")
    answered = {
        "default": labels(default),
        "json": labels(infer(tensor(binary=False), outputs=plain)),
        "json in": labels(infer(tensor(binary=False))),
        "json out": labels(infer(tensor(), outputs=plain)),
        "column": labels(infer(tensor((2, 1)))),
        "row": labels(infer(tensor((1, 2)))),
        "gzip": labels(
            infer(tensor(), request_compression_algorithm="gzip", response_compression_algorithm="gzip")
        ),
        "parameters": labels(infer(tensor(), priority=1, timeout=1000, parameters={"unit": "a"})),
        "asynchronous": labels(client.async_infer("sentiment", [tensor()], headers=headers).get_result()),
        "aio": asyncio.run(infer_asynchronously(address, headers)),
    }
    try:
        infer(tensor(), outputs=[triton.InferRequestedOutput("logits")])
        refused = ""
    except triton.InferenceServerException as error:
        refused = f"{error.status()} {error.message()}"
    sys.stdout.write(
        json.dumps(
            {
                "labels": answered,
                "refused": refused,
                "shapes": {name: some.as_numpy(name).shape for name in ("embedding", "label", "score")},
                "norms": np.linalg.norm(some.as_numpy("embedding"), axis=1).tolist(),
                "probabilities": default.as_numpy("probabilities").tolist(),
                "response": {name: some.get_response().get(name) for name in ("id", "model_version")},
                "version": infer(tensor(), model_version="1").get_response()["model_version"],
                "ready": [
                    client.is_server_live(),
                    client.is_server_ready(),
                    client.is_model_ready("sentiment", headers=headers),
                    client.is_model_ready("sentiment", "1", headers=headers),
                ],
                "server": client.get_server_metadata(headers=headers),
                "model": client.get_model_metadata("sentiment", headers=headers),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
