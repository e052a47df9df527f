"""Encode requests and decode answers by MLServer's codecs; runs in the clients' environment.

Arguments: the URL, a key. Writes what each codec read as JSON.
"""

import json
import sys
from typing import Any

import httpx
import pandas as pd
from mlserver.codecs import Base64Codec, NumpyCodec, PandasCodec, StringCodec, StringRequestCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse

TEXTS = ["so good", "it broke at once"]


def main(url: str, key: str) -> None:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"})

    def infer(request: InferenceRequest) -> InferenceResponse:
        answer = client.post(
            "/v2/models/sentiment/infer",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )
        if answer.status_code != 200:
            raise SystemExit(f"{request!r}: {answer.text}")
        return InferenceResponse.model_validate_json(answer.content)

    def outputs(response: InferenceResponse) -> dict[str, Any]:
        return {output.name: output for output in response.outputs}

    def labels(request: InferenceRequest) -> list[str]:
        return list(StringCodec.decode_output(outputs(infer(request))["label"]))

    def of_input(one: Any) -> InferenceRequest:
        return InferenceRequest(inputs=[one])

    answered = {
        "StringCodec": labels(of_input(StringCodec.encode_input("text", TEXTS))),
        "StringCodec, strings": labels(of_input(StringCodec.encode_input("text", TEXTS, use_bytes=False))),
        "StringRequestCodec": labels(StringRequestCodec.encode_request(TEXTS)),
        "Base64Codec": labels(of_input(Base64Codec.encode_input("text", [each.encode() for each in TEXTS]))),
        "Base64Codec, strings": labels(
            of_input(Base64Codec.encode_input("text", [each.encode() for each in TEXTS], use_bytes=False))
        ),
        "PandasCodec": labels(PandasCodec.encode_request(pd.DataFrame({"text": TEXTS}))),
    }
    response = infer(of_input(StringCodec.encode_input("text", TEXTS)))
    probabilities = NumpyCodec.decode_output(outputs(response)["probabilities"])
    metadata = MetadataModelResponse.model_validate_json(client.get("/v2/models/sentiment").content)
    sys.stdout.write(
        json.dumps(
            {
                "labels": answered,
                "probabilities": probabilities.tolist(),
                "inputs": [each.name for each in metadata.inputs],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
