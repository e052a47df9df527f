"""The messages between an ingress and a replica: a request and its reply, sent by value."""

from dataclasses import dataclass, field

from registry.store.records import VersionRecord

_MAX_REASONS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceRequest:
    """A batch of n different texts, and the versions that score each of them.

    `pairs`: uint16 [m, 2], each a row of `texts` and an index into `versions`. Several versions may score a text, after
    one pass; a text without a pair gets its vector alone. The rows `queries` are to find other texts by. `bulk` lets
    other batches go first. `batch` names the batch in the logs of both ends, `traceparent` its span.
    """

    texts: list[str]
    versions: list[VersionRecord]
    pairs: bytes = field(repr=False)
    bulk: bool
    queries: tuple[int, ...] = ()
    batch: str = ""
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceReply:
    """A replica's results for the n texts and m pairs of a request.

    `embeddings`: little-endian float16 [n, d]; `tokens`: uint16 [n], the number read; `truncated` and `unknown`:
    bool [n]; `scores`: float32 [m, 3]; `foreign`: bool [m]. All are bytes, because they cross processes. `languages`:
    m BCP 47 tags. `text_faults` by row and `score_faults` by pair hold the reason for each missing result.
    """

    embeddings: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    truncated: bytes = field(repr=False)
    unknown: bytes = field(repr=False)
    scores: bytes = field(repr=False)
    foreign: bytes = field(repr=False)
    languages: list[str] = field(repr=False)
    text_faults: dict[int, str] = field(default_factory=dict)
    score_faults: dict[int, str] = field(default_factory=dict)


def summarize_faults(reply: InferenceReply) -> dict[str, object]:
    """Return the number of a reply's faults and some of their reasons, for the log."""
    reasons = sorted({*reply.text_faults.values(), *reply.score_faults.values()})
    return {
        "text_faults": len(reply.text_faults),
        "score_faults": len(reply.score_faults),
        "reasons": reasons[:_MAX_REASONS],
    }
