"""Text classifiers for tests: narrow networks with random weights, in transformers' layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.support.tiny import WORDS

WIDTH = 32
_NUMBERS = tuple(f"n{number}" for number in range(40))


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A folder, and how many tokens the model in it can read."""

    folder: Path
    reads: int


def tiny_classifier(
    folder: Path,
    *,
    architecture: str = "bert",
    labels: Sequence[str] = ("LABEL_0", "LABEL_1", "LABEL_2"),
    several: bool = False,
    seed: int = 5,
) -> Made:
    """Write a classifier to `folder`; it is the same every time."""
    build, reads = {"bert": (_bert, 48), "distilbert": (_distilbert, 64), "roberta": (_roberta, 48)}[
        architecture
    ]
    named = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if several else None,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(named)
    model.save_pretrained(folder)
    special = (
        ("<s>", "<pad>", "</s>", "<unk>")
        if architecture == "roberta"
        else ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    )
    # BERT's padding is token 0, RoBERTa's token 1.
    order = special if architecture == "roberta" else (special[1], special[3], special[0], special[2])
    tokenizer(order, special, length=64 if architecture == "roberta" else reads).save_pretrained(folder)
    return Made(folder=folder, reads=reads)


def tokenizer(order: Sequence[str], special: Sequence[str], *, length: int) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer of whole words.

    `special`: the tokens that begin, pad and end a text, and the one for unknown words.
    """
    begin, padding, end, unknown = special
    ids = {word: number for number, word in enumerate([*order, *WORDS.split(), *_NUMBERS])}
    result = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(name, ids[name]) for name in (begin, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=result,
        bos_token=begin,
        cls_token=begin,
        eos_token=end,
        sep_token=end,
        pad_token=padding,
        unk_token=unknown,
        model_max_length=length,
    )


def _size() -> int:
    return 4 + len(WORDS.split()) + len(_NUMBERS)


def _bert(named: dict[str, Any]) -> Any:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=_size(),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            **named,
        )
    )


def _distilbert(named: dict[str, Any]) -> Any:
    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=_size(),
            dim=WIDTH,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=64,
            **named,
        )
    )


def _roberta(named: dict[str, Any]) -> Any:
    """Return a RoBERTa; its 50 positions are counted from its padding on, so that 48 are left."""
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=_size(),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=50,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            **named,
        )
    )
