"""Embed and list models by OpenAI's client, sync and async; runs in the clients' environment.

Arguments: the URL, a key. Writes what came back as JSON.
"""

import asyncio
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import openai

MODEL = "test-space"


def raised(call: Callable[[], Any]) -> str:
    """Return the class of the error that a call raises, and its message."""
    try:
        call()
    except openai.APIStatusError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


def is_close(one: float, other: float) -> bool:
    """Return whether both are the same as float32: written in JSON it has fewer digits."""
    return math.isclose(one, other, rel_tol=1e-6)


async def embed_asynchronously(**options: str) -> int:
    async with openai.AsyncOpenAI(**options) as client:
        answer = await client.embeddings.create(model=MODEL, input=["so good"])
        return len(answer.data[0].embedding)


def main(url: str, key: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    create = client.embeddings.create
    packed = create(model=MODEL, input=["so good", "it broke"], user="somebody", dimensions=384)
    numbers = create(model=MODEL, input=["so good", "it broke"], encoding_format="float")
    long = create(model=MODEL, input=["so good", "good " * 600])
    models = client.models.list().data
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="vk_wrong", max_retries=0)
    sys.stdout.write(
        json.dumps(
            {
                "same": all(map(is_close, packed.data[1].embedding, numbers.data[1].embedding)),
                "usage": numbers.usage.total_tokens,
                "most": len(create(model=MODEL, input=["good"] * 2048).data),
                "large": len(create(model=MODEL, input=["good-day-" * 1_000] * 1_500).data),
                "truncated": [getattr(each, "truncated", False) for each in long.data],
                "async": asyncio.run(embed_asynchronously(base_url=f"{url}/v1", api_key=key)),
                "models": [each.id for each in models],
                "retrieved": [client.models.retrieve(each.id).created for each in models],
                "errors": {
                    "empty": raised(lambda: create(model=MODEL, input="")),
                    "tokens": raised(lambda: create(model=MODEL, input=[[100, 200], [300]])),
                    "many": raised(lambda: create(model=MODEL, input=["good"] * 2049)),
                    "dimensions": raised(lambda: create(model=MODEL, input="good", dimensions=128)),
                    "model": raised(lambda: create(model="text-embedding-3-small", input="good")),
                    "retrieve": raised(lambda: client.models.retrieve("gpt-4")),
                    "key": raised(lambda: stranger.embeddings.create(model=MODEL, input="good")),
                    "chat": raised(lambda: client.chat.completions.create(model=MODEL, messages=[])),
                },
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
