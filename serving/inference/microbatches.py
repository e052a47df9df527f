"""Micro-batches: how texts are tokenized and divided into them, and the result of a pass over one.

Knows no engine and no head.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import TOKENIZER, EncoderSettings

MAX_ROWS = 16
TOKEN_BUDGET = 512
# A small batch waits for the end of a bulk pass, so bulk passes are short.
BULK_TOKEN_BUDGET = 128
# The cost of a pass besides its tokens, in tokens: with AVX2, 1.4 to 2.5 ms at 0.15 to 0.19 ms a token.
PASS_TOKENS = 10
# The names of the token for what isn't in the vocabulary.
_UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<UNK>")


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """The result of one pass over at most `MAX_ROWS` texts; row i of each array belongs to `rows[i]`.

    `rows`: int64 [b], indices into the texts of the call. `embedding`: float32 [b, d], unit length.
    `tokens`: float32 [b, t, w], the token states that heads may read; of a classifier [b, 1, n], its logits.
    `mask`: bool [b, t], False is padding.
    `truncated`: bool [b], the text is longer than the encoder reads. `unknown`: bool [b], the encoder knows less than
    half of what it reads of the text.
    """

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    unknown: NDArray[np.bool_]

    def select(self, positions: NDArray[np.int64]) -> "MicroBatch":
        """Return the part at some positions, which ascend without repetition."""
        if len(positions) == len(self.rows):
            return self
        return MicroBatch(
            rows=self.rows[positions],
            texts=tuple(self.texts[position] for position in positions),
            embedding=self.embedding[positions],
            tokens=self.tokens[positions],
            mask=self.mask[positions],
            truncated=self.truncated[positions],
            unknown=self.unknown[positions],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """The number of compiled input shapes, of those that occur, and the seconds that took."""

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
    unknown: NDArray[np.bool_]

    @property
    def inputs(self) -> dict[str, NDArray[np.int64]]:
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def to_micro_batch(
        self, texts: Sequence[str], embedding: NDArray[np.float32], tokens: NDArray[np.float32]
    ) -> MicroBatch:
        """Return the result of a pass, with those of all `texts` to which it belongs."""
        return MicroBatch(
            rows=self.rows,
            texts=tuple(texts[row] for row in self.rows),
            embedding=embedding,
            tokens=tokens,
            mask=self.mask.astype(np.bool_),
            truncated=self.truncated,
            unknown=self.unknown,
        )


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    threads: int,
    max_rows: int = MAX_ROWS,
    budget: int = TOKEN_BUDGET,
    pad_length: Callable[[int], int] = lambda length: length,
    mix_lengths: bool = True,
) -> list[list[int]]:
    """Divide the indices of texts into micro-batches at the least cost, longest texts first, some for each thread.

    A pass has at most `max_rows` texts and `budget` padded tokens, and costs its padded tokens and `PASS_TOKENS`. The
    cheapest division of the sorted lengths is found by dynamic programming over where the last pass begins. Unless
    `mix_lengths`, texts of different padded length never share a pass.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    widths = [pad_length(lengths[index]) for index in order]
    limit = max(1, min(max_rows, -(-len(order) // threads)))
    costs = [0, *[sys.maxsize] * len(order)]
    begins = [0] * (len(order) + 1)
    for begin, width in enumerate(widths):
        rows = max(1, min(limit, budget // width, len(order) - begin))
        cost = costs[begin] + PASS_TOKENS
        for end in range(begin + 1, begin + rows + 1):
            if not mix_lengths and widths[end - 1] != width:
                break
            cost += width
            if cost < costs[end]:
                costs[end], begins[end] = cost, begin
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.append(order[begins[end] : end])
        end = begins[end]
    return parts[::-1]


class TokenizedTexts:
    """Texts as token ids, with their prompts, ready to be divided into micro-batches.

    The texts at the places `queries` are to find others by.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: EncoderSettings,
        texts: Sequence[str],
        queries: Collection[int] = (),
    ) -> None:
        self._encodings: list[Encoding] = tokenizer.encode_batch_fast(
            list(settings.add_prompts(texts, queries))
        )
        self.lengths = [len(encoding.ids) for encoding in self._encodings]
        self._unknown = _unknown_token(tokenizer)
        self._added = [tokenizer.num_special_tokens_to_add(is_pair=False)] * len(texts)
        if settings.query_prompt or settings.document_prompt:
            prompts = [
                _token_count(tokenizer, prompt)
                for prompt in (settings.document_prompt, settings.query_prompt)
            ]
            self._added = [added + prompts[row in queries] for row, added in enumerate(self._added)]

    def pad(
        self, rows: Sequence[int], *, pad_length: Callable[[int], int] = lambda length: length
    ) -> MicroBatchPlan:
        """Return the texts `rows` as one input, as wide as `pad_length` of the longest."""
        width = pad_length(max(self.lengths[row] for row in rows))
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for position, row in enumerate(rows):
            ids[position, : self.lengths[row]] = self._encodings[row].ids
            mask[position, : self.lengths[row]] = 1
        truncated = np.array([bool(self._encodings[row].overflowing) for row in rows])
        read = np.array([self.lengths[row] - self._added[row] for row in rows])
        unknown = ((ids == self._unknown) & (mask == 1)).sum(axis=1)
        return MicroBatchPlan(
            rows=np.array(rows, dtype=np.int64),
            ids=ids,
            mask=mask,
            truncated=truncated,
            unknown=(2 * unknown > read) | (read <= 0),
        )


def _unknown_token(tokenizer: Tokenizer) -> int:
    """Return the id of the token for what isn't in the vocabulary; -1 if the tokenizer knows every character."""
    ids = (tokenizer.token_to_id(name) for name in _UNKNOWN_TOKENS)
    return next((number for number in ids if number is not None), -1)


def _token_count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def load_tokenizer(bundle: Bundle, settings: EncoderSettings) -> Tokenizer:
    """Load a bundle's tokenizer. It truncates a text to the length that the encoder reads, and doesn't pad."""
    tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    return tokenizer
