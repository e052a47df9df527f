"""The way from a folder of weights to vectors: export, quantisation, and every engine."""

import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import EncoderSettings, Engine
from registry.encoders.export import build_encoder
from registry.encoders.sources import SentenceEncoderSource, default_source
from registry.errors import BundleCorrupt, ExportFailed
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.engines.openvino import pad_length
from serving.inference.microbatches import MAX_ROWS, TOKEN_BUDGET, plan_micro_batches
from tests.support.live import build_encoders
from tests.support.tiny import DIMENSIONS, TINY_SPACE, WORDS, sentences, tiny_source

TEXTS = sentences(120)

INTEGER = (Engine.INT8, Engine.INT8_PER_TOKEN)
# The last bits of float32, which no rounding to 8 bits may make visible.
NOISE = 1e-5


def vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    result = np.full((len(texts), encoder.settings.dimensions), np.nan, np.float32)
    for batch in encoder.run(texts):
        result[batch.rows] = batch.embedding
    return result


def states(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    results: dict[int, np.ndarray] = {}
    for batch in encoder.run(texts):
        for place, row in enumerate(batch.rows):
            results[int(row)] = batch.tokens[place][batch.mask[place]]
    return [results[row] for row in range(len(texts))]


@pytest.fixture(scope="module", params=[*Engine, "torch"])
def encoder(request: pytest.FixtureRequest, encoder_bundle: Bundle) -> Encoder:
    if request.param == "torch":
        return open_encoder(encoder_bundle, device="cpu")
    return open_encoder(encoder_bundle, engine=request.param, threads=2)


@pytest.fixture(scope="module")
def reference(source: SentenceEncoderSource) -> np.ndarray:
    """Return sentence-transformers' vectors: the mean of the last layer, of unit length."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source.path / "tokenizer.json"), pad_token="[PAD]", model_max_length=48
    )
    model = AutoModel.from_pretrained(source.path, add_pooling_layer=False).eval()
    results = []
    with torch.inference_mode():
        for text in TEXTS:
            fed = tokenizer(text, return_tensors="pt", truncation=True)
            last = model(input_ids=fed["input_ids"], attention_mask=fed["attention_mask"]).last_hidden_state
            results.append(torch.nn.functional.normalize(last.mean(dim=1), dim=1)[0].numpy())
    return np.stack(results)


def test_settings_say_what_the_runtime_needs(encoder_bundle: Bundle, source: SentenceEncoderSource) -> None:
    settings = EncoderSettings.from_manifest(encoder_bundle.manifest)
    assert settings.digest == source.digest
    assert (settings.space, settings.dimensions, settings.max_length) == (TINY_SPACE, DIMENSIONS, 48)
    assert settings.token_layers == (1, 2)


def test_vectors_are_those_of_the_weights(encoder: Encoder, reference: np.ndarray) -> None:
    cosines = (vectors(encoder, TEXTS) * reference).sum(axis=1)
    # Random weights quantise worse than trained ones.
    least = 0.9 if encoder.engine in INTEGER else 0.999
    assert cosines.min() > least
    assert np.allclose(np.linalg.norm(vectors(encoder, TEXTS), axis=1), 1, atol=1e-5)


def test_batch_mates_change_nothing(encoder: Encoder) -> None:
    together = vectors(encoder, TEXTS)
    alone = np.concatenate([vectors(encoder, [text]) for text in TEXTS])
    shuffled = vectors(encoder, TEXTS[::-1])[::-1]
    assert np.abs(together - alone).max() < NOISE
    assert np.abs(together - shuffled).max() < NOISE


def test_batch_mates_change_nothing_in_a_trained_encoder() -> None:
    """Here a step of 8 bits is so small that the last bits of float32 can cross it."""
    *_, folder = build_encoders().values()
    trained = open_encoder(Bundle.open(folder), engine=Engine.INT8, threads=2)
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS.split(), k=rng.randint(1, 40))) for _ in range(1500)]
    together = vectors(trained, texts)
    few = [vectors(trained, texts[start : start + 6]) for start in range(0, len(texts), 6)]
    assert np.abs(np.concatenate(few) - together).max() < NOISE


def test_token_states_are_whole_and_the_same_alone(encoder: Encoder) -> None:
    together = states(encoder, TEXTS[:40])
    for text, result in zip(TEXTS[:40], together, strict=True):
        assert result.shape == (min(48, len(text.split()) + 2), 2 * DIMENSIONS)
        assert np.abs(result - states(encoder, [text])[0]).max() < 10 * NOISE


def test_text_longer_than_the_encoder_reads_is_marked(encoder: Encoder) -> None:
    long = " ".join(["good"] * 47)
    marks = {
        text: mark
        for batch in encoder.run([long, "good"])
        for text, mark in zip(batch.texts, batch.truncated, strict=True)
    }
    assert marks == {long: True, "good": False}


def test_threads_share_an_encoder(encoder: Encoder) -> None:
    expected = vectors(encoder, TEXTS)
    wrong: list[int] = []

    def run(offset: int) -> None:
        wrong.extend(
            start
            for start in range(offset, len(TEXTS) - 7, 7)
            if np.abs(vectors(encoder, TEXTS[start : start + 7]) - expected[start : start + 7]).max() > NOISE
        )

    threads = [threading.Thread(target=run, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_abandoned_run_leaves_the_encoder_whole(encoder: Encoder) -> None:
    run = encoder.run(TEXTS)
    next(run)
    run.close()
    assert np.isfinite(vectors(encoder, TEXTS)).all()


@pytest.mark.parametrize("mixed", [True, False])
def test_every_text_is_in_one_micro_batch_within_the_budget(mixed: bool) -> None:
    lengths = [3 + (number * 37) % 254 for number in range(500)]
    cuts = plan_micro_batches(lengths, threads=2, pad_length=pad_length, mix_lengths=mixed)
    assert sorted(row for rows in cuts for row in rows) == list(range(500))
    for rows in cuts:
        assert mixed or len({pad_length(lengths[row]) for row in rows}) == 1
        longest = pad_length(max(lengths[row] for row in rows))
        assert len(rows) <= MAX_ROWS
        assert len(rows) == 1 or len(rows) * longest <= TOKEN_BUDGET


def test_building_twice_gives_the_same_identity_and_keeps_the_first(
    source: SentenceEncoderSource, encoder_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tiny_source(tmp_path / "copy")
    assert copy.digest == source.digest
    with pytest.raises(ExportFailed, match="can't be read"):
        build_encoder(SentenceEncoderSource(path=tmp_path, name="none", space=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_forged_engine_is_refused_by_name(encoder_bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(encoder_bundle.path, tmp_path / "copy"))
    with copy.file("int8.bin").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"forged")
    with pytest.raises(BundleCorrupt, match=r"int8\.bin"):
        Bundle.open(copy.path)


def test_default_weights_are_there() -> None:
    source = default_source()
    source.check()
    assert (source.space, source.max_length) == ("all-MiniLM-L6-v2", 256)
