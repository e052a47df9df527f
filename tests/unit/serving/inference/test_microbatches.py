"""Tokenized texts: how much of them an encoder knows."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from registry.bundles.manifest_schema import EncoderSettings, Engine
from serving.inference.microbatches import TokenizedTexts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "query", "passage"]


def tokenizer(unknown: str = "[UNK]") -> Tokenizer:
    """Return a tokenizer of whole words, which adds one token before a text and one after it."""
    ids = {word.replace("[UNK]", unknown): number for number, word in enumerate(WORDS)}
    result = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    result.enable_truncation(6)
    return result


def settings(**prompts: str) -> EncoderSettings:
    return EncoderSettings(
        digest="e",
        space=None,
        dimensions=4,
        max_length=6,
        token_layers=(),
        engine=Engine.FP32,
        architecture={},
        **prompts,
    )


def unknown(
    texts: Sequence[str], *, token: str = "[UNK]", queries: Sequence[int] = (), **prompts: str
) -> list[bool]:
    tokenized = TokenizedTexts(tokenizer(token), settings(**prompts), texts, queries)
    # In another order, and padded.
    rows = list(reversed(range(len(texts))))
    result: list[bool] = tokenized.pad(rows, pad_length=lambda length: length + 3).unknown.tolist()
    return result[::-1]


@pytest.mark.parametrize("token", ["[UNK]", "<unk>"])
def test_a_text_is_unknown_if_more_than_half_of_it_is(token: str) -> None:
    texts = ["good bad", "good x", "x", "x y good", "good good x", "x y z good bad good bad"]
    assert unknown(texts, token=token) == [False, False, True, True, False, True]


def test_a_text_of_which_nothing_is_read_is_unknown() -> None:
    assert unknown(["", "good"]) == [True, False]


def test_prompts_are_no_part_of_the_text() -> None:
    prompts = {"query_prompt": "query query ", "document_prompt": "passage "}
    assert unknown(["x", "good", "x", "x good"], queries=[2, 3], **prompts) == [True, False, True, False]


def test_a_tokenizer_that_knows_every_character_calls_nothing_unknown() -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    every = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    every.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert TokenizedTexts(every, settings(), ["👎", "good"]).pad([0, 1]).unknown.tolist() == [False, False]
