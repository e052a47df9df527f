"""A sentence encoder for tests: a BERT with two narrow layers, in sentence-transformers' layout.

It comes with labelled texts in its words.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from registry.data.corpora import Example
from registry.encoders.sources import SentenceEncoderSource

WORDS = (
    "a and awful bad best boring broke fine good great is it joy late loved not of ok sad so the thing worst"
)
TINY_SPACE = "tiny"
DIMENSIONS = 32
GOOD, BAD, PLAIN = (
    ("good", "great", "loved", "best", "joy"),
    ("bad", "awful", "worst", "sad", "boring"),
    ("ok", "fine", "late", "thing", "of"),
)


def tiny_source(
    folder: Path,
    *,
    space: str = TINY_SPACE,
    dimensions: int = DIMENSIONS,
    seed: int = 3,
) -> SentenceEncoderSource:
    """Write the encoder to `folder`; it is the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split(), *(f"n{number}" for number in range(40))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=dimensions,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"})
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": dimensions, "pooling_mode_mean_tokens": True})
    )
    return SentenceEncoderSource(path=folder, name="tiny", space=space, token_layers=(1, 2))


def sentences(count: int) -> list[str]:
    """Return different texts of many lengths."""
    words = WORDS.split()
    return [
        " ".join(words[(start * 7 + step * (start % 5 + 1)) % len(words)] for step in range(1 + start % 40))
        + f" n{start % 40}"
        for start in range(count)
    ]


def examples(count: int = 900) -> list[Example]:
    """Return texts whose label is the kind of their one distinctive word; every third has no rating."""
    result = []
    for number in range(count):
        label = number % 3
        word = (BAD, PLAIN, GOOD)[label][number // 3 % 5]
        text = f"the n{number % 40} is so {word} and n{number // 40} it"
        rating = None if number % 7 == 0 else (-2.0, 0.0, 2.0)[label]
        result.append(
            Example(text=text, label=label, source="made" if rating is not None else "unrated", rating=rating)
        )
    return result
