"""What crosses the remote call between an ingress and a replica: a question and its reply, by value."""

from dataclasses import dataclass, field

from registry.store.records import VersionRecord

_REASONS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceRequest:
    """A batch of n different texts, and which of the versions scores which of them.

    `pairs`: uint16 [m, 2], each a row of `texts` and an index into `versions`; a text may be scored by several
    versions, after one pass, or by none, which asks for its vector alone. `bulk` lets other batches go first.
    `batch` names the batch in the logs of both ends, `traceparent` its span.
    """

    texts: list[str]
    versions: list[VersionRecord]
    pairs: bytes = field(repr=False)
    bulk: bool
    batch: str = ""
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceReply:
    """What a replica says of a question's n texts and m pairs.

    `embeddings`: little-endian float16 [n, d]; `tokens`: uint16 [n], how many were read; `truncated`: bool [n];
    `scores`: float32 [m, 3]. All as bytes, because they cross processes. Why there is no answer: `text_faults` by
    row, `score_faults` by pair.
    """

    embeddings: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    truncated: bytes = field(repr=False)
    scores: bytes = field(repr=False)
    text_faults: dict[int, str] = field(default_factory=dict)
    score_faults: dict[int, str] = field(default_factory=dict)


def summarize_faults(reply: InferenceReply) -> dict[str, object]:
    """What a log says of a reply's faults: how many, and a few of the reasons."""
    reasons = sorted({*reply.text_faults.values(), *reply.score_faults.values()})
    return {
        "text_faults": len(reply.text_faults),
        "score_faults": len(reply.score_faults),
        "reasons": reasons[:_REASONS],
    }
