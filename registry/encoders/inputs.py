"""The inputs of encoders: padded rows of token ids, and the committed sentences that a build is measured on."""

import importlib.resources
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer

Inputs = dict[str, NDArray[np.int64]]

_CALIBRATION_ROWS = 8


def pad_rows(rows: Sequence[NDArray[Any]], dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return n rows [t_i, …] as one array [n, max t, …], zero where the mask, bool [n, max t], is False."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    padded = np.zeros((*mask.shape, *rows[0].shape[1:]), dtype=dtype)
    padded[mask] = np.concatenate(rows)
    return padded, mask


def calibration_texts() -> list[str]:
    """Return the committed sentences on which activations are measured for int8."""
    return _lines("calibration.txt")


def probe_texts() -> list[str]:
    """Return the committed sentences on which an encoder must agree with the space that it claims."""
    return _lines("probe.txt")


def _lines(name: str) -> list[str]:
    text = (importlib.resources.files("registry") / "builtin" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def calibration_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Inputs]:
    """Yield padded inputs of the texts in the order of their lengths."""
    encodings = tokenizer.encode_batch(list(texts))
    encoded = sorted((np.array(encoding.ids, np.int64) for encoding in encodings), key=len)
    for start in range(0, len(encoded), _CALIBRATION_ROWS):
        ids, mask = pad_rows(encoded[start : start + _CALIBRATION_ROWS], np.int64)
        yield {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
