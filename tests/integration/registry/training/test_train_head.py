"""`train_head` on a tiny encoder: repeatable, better than chance, and served exactly as evaluated."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from registry.bundles.bundle import LABELS, Bundle
from registry.bundles.manifest_schema import Engine
from registry.data import corpora
from registry.data.corpora import Example, Part
from registry.errors import BundleInvalid, TrainingFailed
from registry.store.builtin_versions import open_builtin
from registry.training.head import AttentiveNetwork
from registry.training.token_states import collect_states
from registry.training.train_head import HeadPlan, train_head
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import AttentiveHead, has_answer, load_head
from tests.support.tiny import TINY_SPACE, examples

PLAN = HeadPlan(
    epochs=15,
    threads=1,
    batch=32,
    width=32,
    attention=4,
    warm_up_steps=10,
    learning_rate=5e-3,
    dropout=0.0,
    input_dropout=0.0,
)


@pytest.fixture(scope="module")
def encoder(encoder_bundle: Bundle) -> Encoder:
    return open_encoder(encoder_bundle, engine=Engine.FP32, threads=2)


@pytest.fixture(scope="module")
def trained(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("trained")
    return train_head(
        examples(),
        encoder,
        folder / "head",
        name="tiny head",
        space=TINY_SPACE,
        cache=folder / "cache",
        plan=PLAN,
    )


def test_it_learns_what_the_texts_say(trained: Bundle) -> None:
    metrics = trained.manifest.metrics
    assert metrics["rated.accuracy"] > 0.9
    assert metrics["rated.accuracy_low"] <= metrics["rated.accuracy"] <= metrics["rated.accuracy_high"]
    assert {
        "rated.macro_f1",
        "rated.ece",
        "rated.recall_negative",
        "made.accuracy",
        "unrated.accuracy",
    } <= metrics.keys()


def test_manifest_names_encoder_data_and_plan(trained: Bundle, encoder: Encoder) -> None:
    manifest = trained.manifest
    assert (manifest.encoder, manifest.space, manifest.labels) == (encoder.digest, TINY_SPACE, LABELS)
    assert manifest.provenance["data"] == corpora.data_digest(examples())
    assert manifest.provenance["plan"]["seed"] == PLAN.seed
    assert manifest.temperature > 0


def test_same_data_make_the_same_bundle(trained: Bundle, encoder: Encoder, tmp_path: Path) -> None:
    again = train_head(
        examples(),
        encoder,
        tmp_path / "head",
        name="tiny head",
        space=TINY_SPACE,
        cache=tmp_path / "cache",
        plan=PLAN,
    )
    assert again.digest == trained.digest


def test_held_out_labels_change_nothing_but_the_report(
    trained: Bundle, encoder: Encoder, tmp_path: Path
) -> None:
    turned = [
        Example(
            text=each.text,
            label=(each.label + 1) % 3 if each.part is Part.HELD_OUT else each.label,
            source=each.source,
            rating=each.rating,
        )
        for each in examples()
    ]
    again = train_head(
        turned,
        encoder,
        tmp_path / "head",
        name="tiny head",
        space=TINY_SPACE,
        cache=tmp_path / "cache",
        plan=PLAN,
    )
    assert again.manifest.files == trained.manifest.files
    assert again.manifest.temperature == trained.manifest.temperature
    assert again.manifest.metrics["rated.accuracy"] < 0.2


def test_served_scores_are_those_that_were_judged(trained: Bundle, encoder: Encoder) -> None:
    head = load_head(trained)
    held = [each for each in examples() if each.part is Part.HELD_OUT and each.rated]
    hits = 0
    for batch in encoder.run([each.text for each in held]):
        scores = head.scores(batch)
        assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
        assert has_answer(scores).all()
        hits += sum(
            held[row].label == result for row, result in zip(batch.rows, scores.argmax(axis=1), strict=True)
        )
    assert hits / len(held) == pytest.approx(trained.manifest.metrics["rated.accuracy"], abs=1e-4)


def test_numpy_head_computes_what_the_torch_network_does(encoder: Encoder, tmp_path: Path) -> None:
    texts = [each.text for each in examples(64)]
    states = collect_states(texts, encoder, cache=tmp_path, progress=lambda _step, _share: None)
    network = AttentiveNetwork(states.width, width=32, attention=4, dropout=0.3, input_dropout=0.1)
    network.round_to_half()
    head = AttentiveHead.__new__(AttentiveHead)
    head._weights = {name: array.astype(np.float32) for name, array in network.tensors().items()}
    head._temperature = 1.0
    tokens, mask = states.pad(np.arange(len(texts)))
    result = head.logits(tokens, mask)
    assert np.abs(result - network.logits(states, np.arange(len(texts)))).max() < 1e-4


def test_row_without_a_finite_answer_is_no_answer(trained: Bundle, encoder: Encoder) -> None:
    head = load_head(trained)
    batch = max(encoder.run(["so good", "so bad", "ok", "fine"]), key=lambda micro: len(micro.rows))
    batch.tokens[0] = np.nan
    assert has_answer(head.scores(batch)).tolist() == [False] + [True] * (len(batch.rows) - 1)


def test_data_without_a_held_out_part_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    few = [each for each in examples() if each.part is not Part.HELD_OUT]
    with pytest.raises(TrainingFailed, match="held-out"):
        train_head(few, encoder, tmp_path / "head", name="x", space=None, cache=tmp_path / "cache", plan=PLAN)
    assert not (tmp_path / "head").exists()


def test_lexicon_version_is_refused_over_another_lexicon(tmp_path: Path) -> None:
    builtin = open_builtin("lexicon")
    folder = Path(shutil.copytree(builtin.path, tmp_path / "lexicon"))
    Bundle.seal(folder, replace(builtin.manifest, settings={"lexicon": "0" * 64}))
    with pytest.raises(BundleInvalid, match="fitted on lexicon 000"):
        load_head(Bundle.open(folder))
