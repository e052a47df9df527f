"""Predict by KServe's client in every form that it has; runs in the clients' environment.

Arguments: the URL, a key. Writes what each form answered as JSON.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TEXTS = ["so good", "it broke at once"]


def request(data: Any = None, *, binary: bool | None = None, **options: Any) -> InferRequest:
    one = InferInput("text", [2], "BYTES", data=data)
    if binary is not None:
        one.set_data_from_numpy(np.array(TEXTS, dtype=np.object_), binary_data=binary)
    return InferRequest(model_name="sentiment", infer_inputs=[one], **options)


async def call(url: str, key: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(data: InferRequest | dict[str, Any]) -> Any:
        return await client.infer(url, data, model_name="sentiment", headers=dict(headers))

    def labels(response: Any) -> list[str]:
        (label,) = (each for each in response.outputs if each.name == "label")
        return [each.decode() if isinstance(each, bytes) else each for each in label.data]

    binary_outputs = [
        RequestedOutput("label", parameters={"binary_data": True}),
        RequestedOutput("embedding", parameters={"binary_data": True}),
    ]
    everything = await infer(request(binary=True, parameters={"binary_data_output": True}))
    some = await infer(request(TEXTS, request_id="42", request_outputs=binary_outputs))
    plain = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}]}
    return {
        "labels": {
            "list": labels(await infer(request(TEXTS))),
            "numpy in json": labels(await infer(request(binary=False))),
            "numpy": labels(await infer(request(binary=True))),
            "binary both ways": labels(everything),
            "outputs": labels(some),
            "dict": labels(await infer(plain)),
        },
        "id": some.id,
        "norms": np.linalg.norm(some.outputs[1].as_numpy(), axis=1).tolist(),
        "ready": [
            await client.is_server_live(url),
            await client.is_server_ready(url),
            await client.is_model_ready(url, "sentiment", headers=headers),
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(call(*sys.argv[1:]))))
