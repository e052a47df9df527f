"""Folders of sentence-transformers become spaces: the vectors of each engine are sentence-transformers' own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from registry.bundles.manifest_schema import EncoderSettings, Engine
from registry.encoders.export import build_encoder
from registry.encoders.sources import LEAST_AGREEMENT, SentenceEncoderSource
from registry.errors import ExportFailed
from registry.store.model_registry import ModelRegistry
from registry.store.registration import ensure_space_encoder
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from tests.support.tiny import WORDS, sentences

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WIDTH, LENGTH = 32, 40
COMMON = {
    "vocab_size": 80,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# What bge and arctic (BERT and XLM-R, CLS), gte and granite (ModernBERT, CLS), e5 (BERT, XLM-R, mean, prompts) and e5's
# larger ones (Mistral, last token) are made of.
NETWORKS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**COMMON),
    "xlm-roberta": lambda: XLMRobertaConfig(**COMMON),
    "mpnet": lambda: MPNetConfig(**COMMON),
    "modernbert": lambda: ModernBertConfig(**COMMON, cls_token_id=0, sep_token_id=2),
    "mistral": lambda: MistralConfig(**COMMON, num_key_value_heads=2),
}
PROMPTS = {"query": "so good: ", "passage": "the thing: "}
TEXTS = [*sentences(40), "Loved IT", "", " ".join(["good bad"] * 60)]


def save_model(
    folder: Path,
    network: str = "bert",
    pooling: Any = "mean",
    *,
    lower: bool = False,
    prompts: dict[str, str] | None = None,
    more: tuple[Any, ...] = (),
) -> Path:
    """Save a small model as sentence-transformers does."""
    vocabulary = [*SPECIAL, *WORDS.split(), *(f"n{number}" for number in range(40)), ":"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    if not lower:
        tokenizer.normalizer = normalizers.Lowercase()
    plain = folder / "plain"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )
    fast.save_pretrained(plain)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModel.from_config(NETWORKS[network]()).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=LENGTH, do_lower_case=lower)
    model = SentenceTransformer(
        modules=[transformer, Pooling(WIDTH, pooling), *more], device="cpu", prompts=prompts
    )
    model.save(str(folder / "model"))
    return folder / "model"


def vectors(encoder: Encoder, texts: list[str], *, queries: bool = False) -> np.ndarray:
    result = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for batch in encoder.run(texts, queries=range(len(texts)) if queries else ()):
        result[batch.rows] = batch.embedding
    return result


@pytest.mark.parametrize(
    ("network", "pooling", "options"),
    [
        ("bert", "mean", {"prompts": PROMPTS}),
        ("bert", "cls", {"lower": True, "more": (Normalize(),)}),
        pytest.param("bert", ("mean", "max"), {}, marks=pytest.mark.slow),
        pytest.param("bert", "weightedmean", {}, marks=pytest.mark.slow),
        pytest.param("mpnet", "mean_sqrt_len_tokens", {}, marks=pytest.mark.slow),
        pytest.param("xlm-roberta", "cls", {"prompts": {"query": "so good: "}}, marks=pytest.mark.slow),
        ("xlm-roberta", "mean", {"prompts": PROMPTS}),
        ("modernbert", "cls", {}),
        ("mistral", "lasttoken", {"prompts": {"query": "so good: "}}),
    ],
)
def test_every_engine_agrees_with_sentence_transformers(
    tmp_path: Path, network: str, pooling: Any, options: dict[str, Any]
) -> None:
    folder = save_model(tmp_path, network, pooling, **options)
    source = SentenceEncoderSource(path=folder, name="tiny", space="tiny", token_layers=(1, 2))
    bundle = build_encoder(source, tmp_path / "bundle")
    source.verify(bundle)
    settings = EncoderSettings.from_manifest(bundle.manifest)
    assert settings.pooling == ((pooling,) if isinstance(pooling, str) else pooling)
    assert (settings.max_length, settings.digest) == (LENGTH, source.digest)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    prompts = options.get("prompts", {})
    documents = model.encode(TEXTS, prompt=prompts.get("passage", ""), normalize_embeddings=True)
    queries = model.encode_query(TEXTS, normalize_embeddings=True)
    assert bool(prompts) == (np.abs(queries - documents).max() > 0.1)
    for encoder in (open_encoder(bundle, engine=Engine.FP32, threads=2), open_encoder(bundle, device="cpu")):
        # In batches of many lengths, and each text alone.
        alone = np.concatenate([vectors(encoder, [text]) for text in TEXTS])
        for found in (vectors(encoder, TEXTS), alone):
            assert (found * documents).sum(axis=1).min() >= LEAST_AGREEMENT
        assert (vectors(encoder, TEXTS, queries=True) * queries).sum(axis=1).min() >= LEAST_AGREEMENT
    for engine in (Engine.INT8, Engine.INT8_PER_TOKEN):
        # Random weights quantise worse than trained ones.
        rough = vectors(open_encoder(bundle, engine=engine, threads=2), TEXTS)
        assert (rough * documents).sum(axis=1).mean() > 0.9


def test_prompts_and_pooling_are_part_of_the_identity(tmp_path: Path) -> None:
    digests = {
        SentenceEncoderSource(path=save_model(tmp_path / str(place), **changes), name="n", space="n").digest
        for place, changes in enumerate(
            [{}, {"pooling": "cls"}, {"prompts": {"query": "q: "}}, {"prompts": {"query": "r: "}}]  # type: ignore[list-item]
        )
    }
    assert len(digests) == 4


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _shortened(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))


def _foreign(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_code.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def _unprompted(folder: Path) -> None:
    pooling = next(folder.glob("*_Pooling")) / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))


def _garbled(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("tokenizer.json"), r"tokenizer\.json can't be read"),
        (_garbled, r"tokenizer\.json can't be read"),
        (_without("config.json"), r"config\.json can't be read"),
        (_without("modules.json"), "isn't a folder of sentence-transformers"),
        (_without("model.safetensors"), "no weights in safetensors"),
        (_shortened, "they don't fit"),
        (_foreign, r"custom_code\.Transformer, which is never run"),
        (_unprompted, "leaves its prompt out"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory,
    whole: Path,
    database_store: ModelRegistry,
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("spoiled") / "model")
    spoil(folder)
    with pytest.raises(ExportFailed, match=words):
        ensure_space_encoder(database_store, folder, "spoiled", work=folder.parent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("whole"), "xlm-roberta", "cls")


def test_a_module_that_cant_be_exported_is_named(tmp_path: Path, database_store: ModelRegistry) -> None:
    folder = save_model(tmp_path, more=(Dense(WIDTH, WIDTH),))
    with pytest.raises(ExportFailed, match="has a module Dense"):
        ensure_space_encoder(database_store, folder, "dense", work=tmp_path)


def test_vectors_that_arent_sentence_transformers_own_are_refused(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_model(tmp_path, "xlm-roberta", "mean")
    monkeypatch.setattr("registry.encoders.sources._load", lambda _: SentenceTransformer(str(other)))
    source = SentenceEncoderSource(path=whole, name="whole", space="whole", token_layers=(1, 2))
    bundle = build_encoder(source, tmp_path / "bundle")
    monkeypatch.setattr("registry.encoders.sources._load", lambda _: SentenceTransformer(str(whole)))
    with pytest.raises(ExportFailed, match="only the cosine"):
        source.verify(bundle)
