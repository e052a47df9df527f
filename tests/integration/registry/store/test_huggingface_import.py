"""The import of a foreign classifier: its own probabilities, under our labels, on every engine."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from registry.bundles.bundle import Bundle, BundleKind
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from registry.encoders import engine_selection
from registry.encoders.classifier import ClassifierSource
from registry.encoders.export import build_encoder
from registry.errors import BundleInvalid, ImportRefused
from registry.store.huggingface_import import ImportResult, LabelMap, classifier_bundle, import_model
from registry.store.model_registry import ModelRegistry
from serving.cli import main
from serving.cli.output import variable
from serving.inference.encoder import Encoder
from serving.inference.engines import torch as torch_engine
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import has_answer, load_head
from serving.inference.messages import InferenceRequest
from serving.inference.replica import Replica
from serving.settings import Settings
from tests.support.classifiers import WIDTH, Made, tiny_classifier
from tests.support.tiny import sentences

TEXTS = [*sentences(60), " ".join(["good", "bad", "n7"] * 40), "an unknown word"]
STARS = tuple(f"{number} star{'s' * (number > 1)}" for number in range(1, 6))
THREE = "negative=LABEL_0,neutral=LABEL_1,positive=LABEL_2"
FIVE = "negative=1 star,negative=2 stars,neutral=3 stars,positive=4 stars,positive=5 stars"
CASES: dict[str, tuple[dict[str, Any], LabelMap]] = {
    "bert": ({}, LabelMap.parse(THREE)),
    "distilbert": (
        {"architecture": "distilbert", "labels": ("NEGATIVE", "POSITIVE")},
        LabelMap.parse("negative=NEGATIVE,neutral=,positive=POSITIVE"),
    ),
    "roberta": ({"architecture": "roberta", "labels": STARS}, LabelMap.parse(FIVE)),
    "several": (
        {"labels": ("joy", "anger", "calm", "spam"), "several": True, "seed": 8},
        LabelMap.parse("negative=anger,neutral=calm,positive=joy", ignored=("spam",)),
    ),
}


class Case:
    """One imported model, with the probabilities by transformers."""

    def __init__(self, name: str, made: Made, labels: LabelMap, store: ModelRegistry, work: Path) -> None:
        self.name, self.made, self.labels, self.store, self.work = name, made, labels, store, work
        self.imported: ImportResult = import_model(
            store, str(made.folder), labels, work=work, model=f"imported-{name}"
        )
        self.encoder = Bundle.open(store.fetch(self.imported.encoder, work / "cache"))
        self.version = Bundle.open(store.fetch(self.imported.version, work / "cache"))

    def engines(self) -> dict[str, Encoder]:
        opened: dict[str, Encoder] = {
            engine.value: open_encoder(self.encoder, engine=engine, threads=2)
            for engine in Engine
            if ENGINES[engine] in self.encoder.manifest.files
        }
        return opened | {"torch": open_encoder(self.encoder, device="cpu")}

    def expected(self) -> np.ndarray:
        """Return the scores of transformers' own pipeline, with the labels mapped by hand."""
        result = pipeline(
            "text-classification",
            model=AutoModelForSequenceClassification.from_pretrained(self.made.folder),
            tokenizer=AutoTokenizer.from_pretrained(self.made.folder),
            top_k=None,
            device="cpu",
        )
        rows = []
        for outcome in result(TEXTS, truncation=True, max_length=self.made.reads, batch_size=1):
            scores = {each["label"]: each["score"] for each in outcome}
            mapped = [
                sum(scores[label] for label in self.labels.mapping[ours])
                for ours in ("negative", "neutral", "positive")
            ]
            rows.append(np.array(mapped) / sum(mapped))
        return np.array(rows)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, database_store: ModelRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    options, labels = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return Case(
        request.param, tiny_classifier(folder / "model", **options), labels, database_store, folder / "work"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return tiny_classifier(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run `valence …` in its own home; return exit code, stdout, stderr."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.setenv("VALENCE_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["valence", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def scores(encoder: Encoder, version: Bundle, texts: Sequence[str]) -> np.ndarray:
    head = load_head(version)
    result = np.full((len(texts), 3), np.nan, np.float32)
    for batch in encoder.run(texts):
        result[batch.rows] = head.scores(batch)
    return result


def test_probabilities_are_those_of_transformers_on_every_engine(case: Case) -> None:
    expected = case.expected()
    for engine, encoder in case.engines().items():
        result = scores(encoder, case.version, TEXTS)
        assert np.allclose(result.sum(axis=1), 1, atol=1e-5)
        off = np.abs(result - expected)
        # Random weights quantise worse than trained ones; torch reads weights of half precision.
        most, mean = {"fp32": (1e-4, 1e-5), "torch": (5e-3, 1e-3)}.get(engine, (0.3, 0.03))
        assert off.max() < most, (engine, off.max())
        assert off.mean() < mean, (engine, off.mean())


def test_batch_mates_change_nothing(case: Case) -> None:
    for engine, encoder in case.engines().items():
        noise = 0.02 if engine in ("int8", "int8-per-token") else 1e-4
        together = scores(encoder, case.version, TEXTS)
        alone = np.concatenate([scores(encoder, case.version, [text]) for text in TEXTS])
        shuffled = scores(encoder, case.version, TEXTS[::-1])[::-1]
        assert np.abs(together - alone).max() < noise, engine
        assert np.abs(together - shuffled).max() < noise, engine


def test_int8_is_kept_only_where_it_decides_as_float32_does(case: Case) -> None:
    manifest = case.encoder.manifest
    for engine in (Engine.INT8, Engine.INT8_PER_TOKEN):
        agrees = (
            manifest.metrics[f"{engine}.agreement"] >= 0.98 and manifest.metrics[f"{engine}.shift"] <= 0.02
        )
        assert (ENGINES[engine] in manifest.files) is agrees
    assert ENGINES[EncoderSettings.from_manifest(manifest).engine] in manifest.files


def test_bundles_say_what_they_are_and_where_they_come_from(case: Case) -> None:
    settings = EncoderSettings.from_manifest(case.encoder.manifest)
    version, record = case.version.manifest, case.imported.version
    assert (settings.space, settings.dimensions, settings.max_length) == (None, WIDTH, case.made.reads)
    assert (record.kind, record.encoder) == (BundleKind.CLASSIFIER.value, case.imported.encoder.digest)
    assert (version.encoder, version.space, version.settings["labels"]) == (
        settings.digest,
        None,
        list(settings.labels),
    )
    assert version.provenance == {"source": "model", "weights": case.encoder.manifest.provenance["weights"]}
    assert sum(file.stat().st_size for file in case.version.path.iterdir()) < 10_000
    assert not list(case.work.glob(".*"))


def test_it_is_served_by_the_path_of_every_version(case: Case) -> None:
    replica = Replica(
        open_encoder(case.encoder), lambda record: case.store.fetch(record, case.work / "cache")
    )
    pairs = np.array([[0, 0], [1, 0]], np.uint16).tobytes()

    async def ask() -> Any:
        await replica.load(case.imported.version)
        return await replica.infer(
            InferenceRequest(
                texts=["good", "so bad"], versions=[case.imported.version], pairs=pairs, bulk=False
            )
        )

    reply = asyncio.run(ask())
    result = np.frombuffer(reply.scores, np.float32).reshape(2, 3)
    assert not reply.text_faults
    assert not reply.score_faults
    assert np.allclose(
        result, scores(open_encoder(case.encoder), case.version, ["good", "so bad"]), atol=0.02
    )


def test_text_longer_than_the_model_reads_is_marked(case: Case) -> None:
    long = " ".join(["good"] * (case.made.reads - 1))
    marks = {
        text: mark
        for batch in open_encoder(case.encoder).run([long, "good"])
        for text, mark in zip(batch.texts, batch.truncated, strict=True)
    }
    assert marks == {long: True, "good": False}


def test_importing_again_registers_nothing_new(case: Case) -> None:
    again = import_model(
        case.store, str(case.made.folder), case.labels, work=case.work, model=f"imported-{case.name}"
    )
    assert again == case.imported


def test_other_mapping_is_another_version_of_the_same_encoder(
    made: Made, database_store: ModelRegistry, tmp_path: Path
) -> None:
    maps = [LabelMap.parse(THREE), LabelMap.parse("negative=LABEL_2,neutral=LABEL_1,positive=LABEL_0")]
    one, two = (
        import_model(database_store, str(made.folder), each, work=tmp_path, model="mapped-twice", name="mine")
        for each in maps
    )
    assert one.encoder == two.encoder
    assert (one.version.version, two.version.version) == ("1", "2")


def test_int8_that_decides_otherwise_gives_way_to_float32(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_selection, "_LEAST_AGREEMENT", 1.01)
    bundle = build_encoder(
        ClassifierSource.load(str(made.folder)), tmp_path / "encoder", calibration=sentences(16)
    )
    assert {ENGINES[Engine.INT8], "int8.bin", ENGINES[Engine.INT8_PER_TOKEN]}.isdisjoint(
        bundle.manifest.files
    )
    assert EncoderSettings.from_manifest(bundle.manifest).engine is Engine.FP32
    assert open_encoder(bundle, engine=Engine.INT8).engine == Engine.FP32


def test_architecture_that_torch_does_not_know_is_an_invalid_bundle_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ClassifierSource.load(str(made.folder))
    bundle = build_encoder(source, tmp_path / "encoder", calibration=sentences(16))

    def unknown(**_: Any) -> None:
        raise ValueError("Unrecognized model identifier")

    monkeypatch.setattr(torch_engine.AutoConfig, "for_model", unknown)
    with pytest.raises(BundleInvalid, match="can't be run by torch: Unrecognized"):
        open_encoder(bundle, device="cpu")


def test_version_on_an_encoder_of_other_labels_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    source = ClassifierSource.load(str(made.folder))
    head = load_head(classifier_bundle(source, LabelMap.parse(THREE), tmp_path / "version", name="mine"))
    encoder = open_encoder(build_encoder(source, tmp_path / "encoder", calibration=sentences(16)))
    batch = next(iter(encoder.run(["good"])))
    batch = type(batch)(
        rows=batch.rows,
        texts=batch.texts,
        embedding=batch.embedding,
        tokens=batch.tokens[:, :, :2],
        mask=batch.mask,
        truncated=batch.truncated,
        unknown=batch.unknown,
    )
    with pytest.raises(BundleInvalid, match="mine maps 3 labels, its encoder gives 2"):
        head.scores(batch)
    batch.tokens[...] = np.nan
    three = np.concatenate([batch.tokens, batch.tokens[:, :, :1]], axis=2)
    spoilt = type(batch)(
        rows=batch.rows,
        texts=batch.texts,
        embedding=batch.embedding,
        tokens=three,
        mask=batch.mask,
        truncated=batch.truncated,
        unknown=batch.unknown,
    )
    assert not has_answer(head.scores(spoilt)).any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("negative=A,positive=B", "neutral isn't mapped"),
        ("negativ=A,neutral=,positive=B", "'negativ=A' isn't one of"),
        ("negative=A,neutral=B,positive=B", "'B' is named more than once"),
        ("negative=A,neutral=,positive=", "fewer than two classes"),
        ("negative=A,negative=,neutral=,positive=B", "not both"),
        ("", "isn't one of"),
    ],
)
def test_mapping_that_says_too_little_or_too_much_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LabelMap.parse(text)


def test_labels_of_theirs_may_hold_commas_and_equal_signs() -> None:
    result = LabelMap.parse("negative=bad, or worse,neutral=x=y,positive=good")
    assert result.mapping == {"negative": ("bad, or worse",), "neutral": ("x=y",), "positive": ("good",)}


def test_unknown_and_unmapped_labels_are_refused_with_the_models_own(
    made: Made, database_store: ModelRegistry, tmp_path: Path
) -> None:
    known = "0: LABEL_0, 1: LABEL_1, 2: LABEL_2"
    for text, reason in (
        ("negative=LABEL_0,neutral=LABEL_1,positive=LABEL_7", f"no label 'LABEL_7'; it has {known}"),
        (
            "negative=LABEL_0,neutral=,positive=LABEL_2",
            f"'LABEL_1' is neither mapped nor ignored; .* {known}",
        ),
    ):
        with pytest.raises(ImportRefused, match=reason):
            import_model(database_store, str(made.folder), LabelMap.parse(text), work=tmp_path)
    with pytest.raises(ImportRefused, match="no label 'LABEL_9'"):
        LabelMap.parse(THREE, ignored=("LABEL_9",)).matrix(("LABEL_0", "LABEL_1", "LABEL_2"))


def test_weights_that_are_no_numbers_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"][0, 0] = np.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ImportRefused, match=r"aren't finite numbers, in classifier\.weight"):
        ClassifierSource.load(str(copy))


def test_model_without_its_last_layer_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ImportRefused, match=r"no weights for classifier\.weight"):
        ClassifierSource.load(str(copy))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_slow_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps({"<unk>": 0, "<pad>": 1, "good": 2}))
    (copy / "merges.txt").write_text("")
    edit(copy / "tokenizer_config.json", tokenizer_class="CTRLTokenizer", model_type="ctrl")
    with pytest.raises(ImportRefused, match="no fast tokenizer"):
        ClassifierSource.load(str(copy))


def test_folders_that_hold_something_else_are_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportRefused, match="empty can't be loaded"):
        ClassifierSource.load(str(tmp_path / "empty"))
    with pytest.raises(ImportRefused, match="there is no folder"):
        ClassifierSource.load(str(tmp_path / "nowhere"))
    edit(copy / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(ImportRefused, match="BertForMaskedLM, which isn't"):
        ClassifierSource.load(str(copy))
    edit(copy / "config.json", architectures=None, problem_type="regression")
    with pytest.raises(ImportRefused, match="a number, not a class"):
        ClassifierSource.load(str(copy))
    (copy / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ImportRefused, match="can't be loaded") as refused:
        ClassifierSource.load(str(copy))
    assert "\n" not in str(refused.value)


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    (copy / "mine.py").write_text("raise SystemExit('run')\n")
    edit(
        copy / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"},
    )
    with pytest.raises(ImportRefused, match="can't be loaded"):
        ClassifierSource.load(str(copy))


def test_checkpoint_of_tensors_is_read_and_one_of_objects_is_not(copy: Path, made: Made) -> None:
    weights = {name: torch.from_numpy(array) for name, array in load_file(copy / "model.safetensors").items()}
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert ClassifierSource.load(str(copy)).digest == ClassifierSource.load(str(made.folder)).digest
    torch.save({**weights, "classifier.bias": Path("/an/object")}, copy / "pytorch_model.bin")
    with pytest.raises(ImportRefused, match="can't be loaded"):
        ClassifierSource.load(str(copy))


def test_name_on_the_hub_is_found_in_its_cache_with_its_commit_or_not_at_all(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ImportRefused, match="neither a folder nor in the hub's cache: download it with --online"
    ):
        ClassifierSource.load("somebody/classifier")
    stored = tmp_path / "models--somebody--classifier"
    shutil.copytree(made.folder, stored / "snapshots" / ("c" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("c" * 40)
    result = ClassifierSource.load("somebody/classifier")
    assert (result.name, result.revision) == ("somebody/classifier", "c" * 40)
    assert result.provenance["revision"] == "c" * 40


@pytest.mark.parametrize(
    ("card", "languages"),
    [
        (None, None),
        ("# A model without metadata", None),
        ("---\nlicense: mit\n---\n", None),
        ("---\nlanguage: de\n---\n", ("de",)),
        ("---\nlanguage:\n- en\n- no\n- pt-BR\n---\n", ("en", "no", "pt-BR")),
        ("---\nlanguage: multilingual\n---\n", None),
        ("---\nlanguage: [en, code]\n---\n", None),
        ("---\nlanguage: [en\n---\n", None),
    ],
)
def test_languages_are_those_of_the_models_card(
    copy: Path, card: str | None, languages: tuple[str, ...] | None
) -> None:
    if card is not None:
        (copy / "README.md").write_text(card)
    assert ClassifierSource.load(str(copy)).languages == languages


def test_command_imports_and_says_what_it_made(
    run: Any, made: Made, database_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri)
    arguments = ("models", "import", str(made.folder), "--model", "by-command", "--name", "tiny")
    arguments += ("--description", "For tests.", "--language", "en", "--language", "de")
    code, out, err = run(*arguments, "--labels", THREE, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert (shown["model"], shown["version"], shown["kind"]) == ("by-command", "1", "classifier")
    assert (shown["name"], shown["description"]) == ("tiny", "For tests.")
    assert shown["languages"] == ["en", "de"]
    code, _, err = run(*arguments, "--labels", "negative=LABEL_0,neutral=,positive=LABEL_2")
    assert (code, err.splitlines()[-1]) == (
        1,
        "valence: 'LABEL_1' is neither mapped nor ignored; the model has 0: LABEL_0, 1: LABEL_1, 2: LABEL_2",
    )
    ignoring = ("--labels", "negative=LABEL_0,neutral=,positive=LABEL_2", "--ignore", "LABEL_1", "--json")
    assert json.loads(run(*arguments, *ignoring)[1])["version"] == "2"


class Hub(BaseHTTPRequestHandler):
    """A fake hub with one repository, whose files are in a folder."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/somebody/classifier/tree/"):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(self.folder.iterdir())
            ]
            content = json.dumps(files).encode()
        elif path.startswith("/api/models/somebody/classifier"):
            siblings = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            siblings.append({"rfilename": "onnx/model.onnx"})
            content = json.dumps(
                {"id": "somebody/classifier", "sha": "c" * 40, "siblings": siblings}
            ).encode()
        elif path.startswith("/somebody/classifier/resolve/"):
            content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub(made: Made) -> Iterator[ThreadingHTTPServer]:
    handler = type("OneRepository", (Hub,), {"folder": made.folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_model_is_downloaded_from_the_hub_only_when_that_is_allowed(
    hub: ThreadingHTTPServer, database_uri: str, tmp_path: Path
) -> None:
    names = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "MLFLOW_TRACKING_URI": database_uri,
        "VALENCE_HOME": str(tmp_path / "home"),
    }

    def valence(*arguments: str) -> subprocess.CompletedProcess[str]:
        """Run in a separate process, because the hub's library reads its settings when it is imported."""
        command = (
            "models",
            "import",
            "somebody/classifier",
            "--labels",
            THREE,
            "--model",
            "from-hub",
            "--json",
        )
        return subprocess.run(
            [sys.executable, "-c", "from serving.cli import main; main()", *command, *arguments],
            env=os.environ | names,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = valence()
    assert (refused.returncode, "download it with --online" in refused.stderr) == (1, True), refused.stderr
    assert not hub.RequestHandlerClass.asked  # type: ignore[attr-defined]
    done = valence("--online")
    assert done.returncode == 0, done.stderr
    assert not any("onnx" in path for path in hub.RequestHandlerClass.asked)  # type: ignore[attr-defined]
    assert json.loads(done.stdout)["version"] == "1"
    # The download is kept for the next time.
    assert json.loads(valence().stdout) == json.loads(done.stdout)


def test_command_with_a_malformed_mapping_is_wrong_usage(run: Any, made: Made) -> None:
    code, _, err = run("models", "import", str(made.folder), "--labels", "negative=LABEL_0")
    assert code == 2
    assert "neutral isn't mapped" in err


def test_command_registers_a_folder_with_an_alias(
    run: Any,
    made: Made,
    database_uri: str,
    database_store: ModelRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri)
    source = ClassifierSource.load(str(made.folder))
    bundle = classifier_bundle(source, LabelMap.parse(THREE), tmp_path / "version", name="mine")
    options = ("--model", "by-folder", "--alias", "challenger", "--name", "other", "--json")
    code, out, err = run("models", "register", str(bundle.path), *options)
    assert code == 0, err
    assert json.loads(out)["name"] == "other"
    assert json.loads(out)["aliases"] == ["challenger"]
    assert database_store.version("by-folder", "1").digest == bundle.digest
    code, _, err = run("models", "register", str(tmp_path))
    assert (code, "manifest.json can't be read" in err, err.count("\n")) == (1, True, 1)


def test_commands_without_a_platform_say_so_in_one_line(run: Any, made: Made, tmp_path: Path) -> None:
    source = ClassifierSource.load(str(made.folder))
    bundle = classifier_bundle(source, LabelMap.parse(THREE), tmp_path / "version", name="mine")
    for arguments in (
        ("models", "import", str(made.folder), "--labels", THREE),
        ("models", "register", str(bundle.path)),
        ("mlflow",),
    ):
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith("valence: the platform's database isn't up: start it with `valence up`")
    assert not (tmp_path / "home").exists()
