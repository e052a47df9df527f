"""OpenAI's request and response for embeddings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from db.schema.tables import DIMENSIONS
from serving.api.schemas.fields import TEXT_SCHEMA, WHOLE, Name, RequestBody, ResponseBody, Texts
from serving.core.texts import MAX_BATCH


def _to_list(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


Input = Annotated[
    Texts,
    BeforeValidator(_to_list),
    WithJsonSchema(
        {
            "anyOf": [
                TEXT_SCHEMA,
                {"type": "array", "items": TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_BATCH},
            ]
        }
    ),
]


class EmbeddingsRequest(RequestBody):
    """OpenAI's request; token ids are refused, `user` is ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "all-MiniLM-L6-v2", "input": ["a text", "another"]}]}
    )

    input: Input
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=DIMENSIONS, le=DIMENSIONS), WHOLE] | None = None
    user: Name | None = None


class EmbeddingItem(ResponseBody):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(ResponseBody):
    """The number of tokens in the input."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(ResponseBody):
    """OpenAI's response."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingsUsage
