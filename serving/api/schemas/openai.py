"""OpenAI's requests and responses: embeddings, and models as it describes them."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from db.schema.tables import DIMENSIONS
from serving.api.schemas.fields import (
    TEXT_SCHEMA,
    WHOLE,
    Name,
    RequestBody,
    ResponseBody,
    Text,
    is_empty,
    limit_texts,
)

# As many as OpenAI takes.
MAX_INPUTS: Final = 2048
_NO_TOKENS: Final = "token ids aren't understood: send text (in LangChain, check_embedding_ctx_length=False)"


def _read_input(texts: Any) -> Any:
    """Return a list of texts. Token ids mean nothing here: they belong to the vocabularies of OpenAI's models."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (int, float)) or (
        isinstance(texts, list) and any(isinstance(each, (int, float, list)) for each in texts)
    ):
        raise ValueError(_NO_TOKENS)
    return limit_texts(texts, MAX_INPUTS)


def _require_own(dimensions: int) -> int:
    if dimensions != DIMENSIONS:
        raise ValueError(f"vectors have {DIMENSIONS} numbers here, which can't be shortened: leave it out")
    return dimensions


Input = Annotated[
    list[Text],
    Field(min_length=1),
    BeforeValidator(_read_input),
    WithJsonSchema(
        {
            "anyOf": [
                TEXT_SCHEMA,
                {"type": "array", "items": TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_INPUTS},
            ]
        }
    ),
]


class EmbeddingsRequest(RequestBody):
    """OpenAI's request; token ids are refused, `user` is ignored."""

    too_many_values: ClassVar[str] = _NO_TOKENS
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "all-MiniLM-L6-v2", "input": ["a text", "another"]}]}
    )

    input: Input
    model: Name
    encoding_format: Literal["float", "base64"] | None = Field(None, description="default: float")
    dimensions: (
        Annotated[
            int,
            Field(json_schema_extra={"minimum": DIMENSIONS, "maximum": DIMENSIONS}),
            AfterValidator(_require_own),
            WHOLE,
        ]
        | None
    ) = None
    user: str | None = None


class EmbeddingItem(ResponseBody):
    """One vector: numbers, or little-endian float32 in base64.

    `truncated`: of the beginning of its text only. `mostly_unknown`: the encoder knows less than half of the tokens.
    """

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    truncated: Annotated[bool, WithJsonSchema({"type": "boolean", "const": True})] = Field(
        True, exclude_if=is_empty
    )
    mostly_unknown: Annotated[bool, WithJsonSchema({"type": "boolean", "const": True})] = Field(
        True, exclude_if=is_empty
    )


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


class ModelDescription(ResponseBody):
    """A model as OpenAI describes it; `created` is in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "valence"
