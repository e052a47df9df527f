"""Texts as micro-batches: how they are tokenised and cut, and what a pass over one gives.

Knows no engine and no head.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import TOKENIZER, EncoderSettings

MAX_ROWS = 16
TOKEN_BUDGET = 512
# A small batch waits for the end of a bulk pass, so that one is kept short.
BULK_TOKEN_BUDGET = 128
# What a pass costs besides its tokens, in tokens: with AVX2, 1.4 to 2.5 ms at 0.15 to 0.19 ms a token.
PASS_TOKENS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one pass over at most `MAX_ROWS` texts gave; row i of each array belongs to `rows[i]`.

    `rows`: int64 [b], indices into the texts that were given. `embedding`: float32 [b, d], unit length.
    `tokens`: float32 [b, t, w], the token states that heads may read; of a classifier [b, 1, n], its logits.
    `mask`: bool [b, t], False is padding.
    `truncated`: bool [b], the text is longer than the encoder reads.
    """

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    def only(self, places: NDArray[np.int64]) -> "MicroBatch":
        """The texts at some places of it, which are different and ascend."""
        if len(places) == len(self.rows):
            return self
        return MicroBatch(
            rows=self.rows[places],
            texts=tuple(self.texts[place] for place in places),
            embedding=self.embedding[places],
            tokens=self.tokens[places],
            mask=self.mask[places],
            truncated=self.truncated[places],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """How many of the input shapes that occur are compiled, and how long that took."""

    shapes: int
    of: int
    seconds: float

    @property
    def complete(self) -> bool:
        return self.shapes == self.of


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchPlan:
    """The padded input of one micro-batch."""

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @property
    def inputs(self) -> dict[str, NDArray[np.int64]]:
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def passed(
        self, texts: Sequence[str], embedding: NDArray[np.float32], tokens: NDArray[np.float32]
    ) -> MicroBatch:
        """What a pass gave, with those of all `texts` that it belongs to."""
        return MicroBatch(
            rows=self.rows,
            texts=tuple(texts[row] for row in self.rows),
            embedding=embedding,
            tokens=tokens,
            mask=self.mask.astype(np.bool_),
            truncated=self.truncated,
        )


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    lanes: int,
    max_rows: int = MAX_ROWS,
    budget: int = TOKEN_BUDGET,
    padded: Callable[[int], int] = lambda length: length,
    mixed: bool = True,
) -> list[list[int]]:
    """Indices sorted by length and cut into micro-batches at the least cost, longest first, some for each lane.

    A pass has at most `max_rows` texts and `budget` padded tokens, and costs its padded tokens and, once,
    `PASS_TOKENS`; the cheapest cuts of the sorted lengths are found by dynamic programming over where the last
    one begins. Unless `mixed`, texts of different padded length never share a pass.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    widths = [padded(lengths[index]) for index in order]
    most = max(1, min(max_rows, -(-len(order) // lanes)))
    least = [0, *[sys.maxsize] * len(order)]
    begins = [0] * (len(order) + 1)
    for begin, width in enumerate(widths):
        rows = max(1, min(most, budget // width, len(order) - begin))
        cost = least[begin] + PASS_TOKENS
        for end in range(begin + 1, begin + rows + 1):
            if not mixed and widths[end - 1] != width:
                break
            cost += width
            if cost < least[end]:
                least[end], begins[end] = cost, begin
    cuts: list[list[int]] = []
    end = len(order)
    while end:
        cuts.append(order[begins[end] : end])
        end = begins[end]
    return cuts[::-1]


class TokenizedTexts:
    """Texts as token ids, ready to be cut."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._encodings: list[Encoding] = tokenizer.encode_batch_fast(list(texts))
        self.lengths = [len(encoding.ids) for encoding in self._encodings]

    def pad(
        self, rows: Sequence[int], *, padded: Callable[[int], int] = lambda length: length
    ) -> MicroBatchPlan:
        """The texts `rows` as one input, as long as `padded` of the longest."""
        length = padded(max(self.lengths[row] for row in rows))
        ids = np.zeros((len(rows), length), dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : self.lengths[row]] = self._encodings[row].ids
            mask[place, : self.lengths[row]] = 1
        truncated = np.array([bool(self._encodings[row].overflowing) for row in rows])
        return MicroBatchPlan(rows=np.array(rows, dtype=np.int64), ids=ids, mask=mask, truncated=truncated)


def load_tokenizer(bundle: Bundle, settings: EncoderSettings) -> Tokenizer:
    """The bundle's tokenizer: cuts a text to what the encoder reads, and pads none."""
    tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    return tokenizer
