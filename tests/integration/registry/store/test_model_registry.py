"""The registry over a real MLflow: in PostgreSQL, and behind a server that serves the artifacts."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import EncoderSettings, Engine
from registry.data.held_out import HeldOutSet
from registry.encoders.sources import default_source
from registry.errors import (
    BundleCorrupt,
    BundleInvalid,
    CorpusUnavailable,
    NameInvalid,
    NotRegistered,
    RegistryUnavailable,
)
from registry.store import builtin_versions
from registry.store.model_registry import CHAMPION, ENCODERS, ModelRegistry
from registry.store.revision import code_revision
from tests.support.tiny import TINY_SPACE


@pytest.fixture(scope="module", params=["database", "server"])
def store(request: pytest.FixtureRequest) -> ModelRegistry:
    if request.param == "database":
        result: ModelRegistry = request.getfixturevalue("database_store")
        return result
    # This artifact root can't be created; behind a server it must not be used.
    return ModelRegistry(request.getfixturevalue("mlflow_url"), artifact_root=Path("/proc/nowhere"))


@pytest.fixture
def model() -> str:
    return f"model-{uuid4().hex[:8]}"


def head(folder: Path, content: str = "weights") -> Bundle:
    folder.mkdir()
    (folder / "head.safetensors").write_text(content)
    manifest = Manifest(
        kind=BundleKind.HEAD,
        name=f"head of {content}",
        encoder="e" * 64,
        space=TINY_SPACE,
        labels=LABELS,
        metrics={"rated.accuracy": 0.75},
        provenance={"data": "d" * 64},
    )
    return Bundle.seal(folder, manifest)


def run_of(store: ModelRegistry, version: str, model: str) -> Any:
    client = store._mlflow.client
    return client.get_run(client.get_model_version(model, version).run_id)


def test_version_is_registered_once_with_run_metrics_and_artifacts(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    bundle = head(tmp_path / "head")
    first = store.register(bundle, model=model)
    assert store.register(bundle, model=model) == first
    assert (first.model, first.version, first.kind, first.digest) == (model, "1", "head", bundle.digest)
    assert first.metrics == {"rated.accuracy": 0.75}
    assert first.encoder == "e" * 64
    assert store.versions(model) == [first]
    assert model in store.models()
    assert ENCODERS not in store.models()


def test_a_version_has_a_name_and_a_description_in_mlflow_too_and_both_can_change(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    bundle = head(tmp_path / "head")
    first = store.register(bundle, model=model)
    assert (first.name, first.description) == (bundle.manifest.name, "")
    assert run_of(store, "1", model).info.run_name == bundle.manifest.name
    before = store.revision(model)
    changed = store.register(bundle, model=model, name="spring", description="Trained in March.")
    assert (changed.version, changed.name, changed.description) == ("1", "spring", "Trained in March.")
    assert run_of(store, "1", model).info.run_name == "spring"
    assert store.revision(model) != before
    assert store.register(bundle, model=model) == changed
    named = store.register(head(tmp_path / "other", "b"), model=model, name="autumn", description="Newer.")
    assert (named.version, named.name, named.description) == ("2", "autumn", "Newer.")
    assert store.versions(model) == [changed, named]


def test_a_version_says_which_languages_it_knows_and_that_can_change(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    bundle = head(tmp_path / "head")
    first = store.register(bundle, model=model)
    assert first.languages == ("en",), "a head is trained on English texts"
    before = store.revision(model)
    changed = store.register(bundle, model=model, languages=["de", "pt-BR"])
    assert (changed.version, changed.languages) == ("1", ("de", "pt-BR"))
    assert store.revision(model) != before
    assert store.register(bundle, model=model, name="spring").languages == ("de", "pt-BR")
    named = store.register(head(tmp_path / "other", "b"), model=model, languages=["fr"])
    assert (named.version, named.languages) == ("2", ("fr",))
    for tag in ("english", "", "e n", "en_US"):
        with pytest.raises(NameInvalid, match="BCP 47"):
            store.register(bundle, model=model, languages=[tag])


def test_the_first_versions_get_a_description_and_keep_what_people_write(
    store: ModelRegistry, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin_versions, "ensure_encoder", lambda *_arguments, **_options: None)
    monkeypatch.setattr(store, "held_out_digest", lambda _model: "d" * 64)
    space = default_source().space
    assert space is not None
    store.register(builtin_versions.open_builtin("lexicon"), model=model)
    first = builtin_versions.bootstrap(store, space=space, model=model, work=tmp_path)
    assert [each.description for each in first] == list(builtin_versions.BUILTIN.values())
    assert "" not in [each.name for each in first]
    revision = store.revision(model)
    assert builtin_versions.bootstrap(store, space=space, model=model, work=tmp_path) == first
    assert store.revision(model) == revision
    store.register(builtin_versions.open_builtin("head"), model=model, description="Ours.")
    again = builtin_versions.bootstrap(store, space=space, model=model, work=tmp_path)
    assert again[1].description == "Ours."


ODD = (
    "o'brien",
    'the "best"',
    "both ' and \"",
    "50% off; --",
    "ünïcode ✓",
    "a\\b",
    "x' OR name = 'y",
    "`tick`",
)


def test_models_with_odd_names_are_models_like_others(store: ModelRegistry, tmp_path: Path) -> None:
    bundle, held_out = head(tmp_path / "head"), HeldOutSet(examples=HeldOutSet.load_builtin().examples[:3])
    names = [f"{name} {uuid4().hex[:8]}" for name in ODD]
    for name in names:
        first = store.register(bundle, model=name, alias=CHAMPION)
        assert store.register(bundle, model=name).version == first.version == "1"
        assert [each.model for each in store.versions(name)] == [name]
        assert store.champion_version(name) == "1"
        assert store.put_held_out(held_out, model=name) == store.held_out_digest(name)
    assert set(names) <= set(store.models())


@pytest.mark.parametrize("name", [ENCODERS, "", " ", " padded", "two\nlines", "nul\0", "x" * 257])
def test_a_name_that_no_model_can_have_is_refused_before_anything_is_made(
    database_store: ModelRegistry, tmp_path: Path, name: str
) -> None:
    before = database_store.models()
    with pytest.raises(NameInvalid):
        database_store.register(head(tmp_path / "head", "other weights"), model=name)
    assert database_store.models() == before


def test_bundle_is_fetched_whole_and_refused_by_name_when_forged(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    bundle = head(tmp_path / "head")
    record = store.register(bundle, model=model)
    folder = store.fetch(record, tmp_path / "cache")
    assert Bundle.open(folder).digest == bundle.digest
    (folder / "head.safetensors").write_text("forged")
    with pytest.raises(BundleCorrupt, match=r"head\.safetensors"):
        store.fetch(record, tmp_path / "cache")


def test_whole_bundle_of_another_version_is_refused(store: ModelRegistry, model: str, tmp_path: Path) -> None:
    record = store.register(head(tmp_path / "head"), model=model)
    folder = store.fetch(record, tmp_path / "cache")
    other = head(tmp_path / "other", "other weights")
    for name in ("manifest.json", "head.safetensors"):
        (folder / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(BundleCorrupt):
        store.fetch(record, tmp_path / "cache")


def test_run_says_which_data_and_which_code_made_the_version(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    record = store.register(head(tmp_path / "head"), model=model, params={"budget": "7"}, tags={"team": "a"})
    assert (record.tags["valence.data"], record.tags["valence.code"]) == ("d" * 64, code_revision())
    assert record.tags["team"] == "a"
    run = run_of(store, record.version, model)
    assert run.data.metrics == {"rated.accuracy": 0.75}
    wanted = {"data": "d" * 64, "code": code_revision(), "provenance.data": "d" * 64, "budget": "7"}
    assert run.data.params == wanted
    assert run.data.tags["valence.code"] == code_revision()


def test_two_caches_hold_the_same_bundle_and_nothing_is_printed(
    store: ModelRegistry, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = head(tmp_path / "head")
    record = store.register(bundle, model=model)
    assert capsys.readouterr().out == ""
    for cache in ("one", "two"):
        assert Bundle.open(store.fetch(record, tmp_path / cache)).digest == bundle.digest
    assert store.fetch(record, tmp_path / "one") == store.fetch(record, tmp_path / "one")


def test_bundle_that_is_gone_is_an_error_that_says_what_to_do(
    database_store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    store = database_store
    record = store.register(head(tmp_path / "head"), model=model)
    folder = store.fetch(record, tmp_path / "cache")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleInvalid, match="register its bundle again"):
        store.fetch(record, tmp_path / "cache")


def test_champion_is_the_alias_and_moving_it_changes_the_revision(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    one = store.register(head(tmp_path / "one", "one"), model=model)
    with pytest.raises(NotRegistered):
        store.champion(model)
    store.set_alias(model, CHAMPION, one.version)
    assert store.champion(model).version == "1"
    before = store.revision(model)
    assert store.revision(model) == before
    two = store.register(head(tmp_path / "two", "two"), model=model, alias=CHAMPION)
    assert store.champion(model) == two
    assert store.version(model, "1").aliases == ()
    assert store.revision(model) != before


def test_a_missing_version_is_reported(store: ModelRegistry, model: str, tmp_path: Path) -> None:
    with pytest.raises(NotRegistered):
        store.versions(model)
    store.register(head(tmp_path / "head"), model=model)
    with pytest.raises(NotRegistered):
        store.version(model, "7")
    with pytest.raises(NotRegistered):
        store.set_alias(model, CHAMPION, "7")
    with pytest.raises(NotRegistered, match="no encoder"):
        store.encoder("0" * 64)


def test_first_encoder_of_a_space_defines_it(
    store: ModelRegistry, model: str, encoder_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(NotRegistered):
        store.space_encoder(TINY_SPACE)
    record = store.register_encoder(encoder_bundle)
    assert store.register_encoder(encoder_bundle) == record
    assert store.space_encoder(TINY_SPACE) == record
    assert (record.bundle, record.dimensions) == (encoder_bundle.digest, 32)
    assert Bundle.open(store.fetch(record, tmp_path / "cache")).digest == encoder_bundle.digest
    with pytest.raises(BundleInvalid, match="an encoder"):
        store.register(encoder_bundle, model=model)


def test_updated_encoder_never_defines_a_space(store: ModelRegistry, tmp_path: Path) -> None:
    tmp_path.joinpath("weights").write_text("some")
    settings = EncoderSettings(
        digest="1" * 64,
        space="elsewhere",
        base="2" * 64,
        dimensions=32,
        max_length=48,
        token_layers=(1, 2),
        engine=Engine.FP32,
        architecture={},
    )
    manifest = Manifest(
        kind=BundleKind.ENCODER,
        name="updated",
        encoder=settings.digest,
        space=settings.space,
        settings=settings.dump(),
    )
    record = store.register_encoder(Bundle.seal(tmp_path, manifest))
    assert (record.digest, record.space) == (settings.digest, "elsewhere")
    with pytest.raises(NotRegistered):
        store.space_encoder("elsewhere")


def test_head_is_no_encoder(store: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="not an encoder"):
        store.register_encoder(head(tmp_path / "head"))


def test_unreachable_store_is_reported(tmp_path: Path) -> None:
    registry = ModelRegistry("http://127.0.0.1:9", artifact_root=tmp_path)
    with pytest.raises(RegistryUnavailable):
        registry.models()


def test_held_out_set_is_logged_once_and_found_by_a_model_without_its_own(
    store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    def runs() -> list[Any]:
        return list(
            store._mlflow.client.search_runs(
                [store._mlflow.ensure_experiment()], "tags.`valence.role` = 'held-out'"
            )
        )

    before = len(runs())
    everybody = HeldOutSet(examples=HeldOutSet.load_builtin().examples[:20])
    own = HeldOutSet(examples=HeldOutSet.load_builtin().examples[20:30])
    assert store.put_held_out(everybody) == store.put_held_out(everybody) == everybody.digest
    assert store.held_out_digest(model) == everybody.digest
    assert store.held_out(model, tmp_path) == everybody
    assert len(runs()) == before + 1
    assert store.put_held_out(own, model=model) == own.digest
    assert store.held_out(model, tmp_path) == own
    assert store.held_out_digest("another") == everybody.digest


def test_a_missing_held_out_set_is_reported_with_the_command_that_logs_one(
    store: ModelRegistry, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.store.model_registry._HELD_OUT", "valence.nobody-logged-this")
    with pytest.raises(NotRegistered, match=r"no held-out set for .* `valence up`"):
        store.held_out_digest(model)


def test_held_out_set_that_was_changed_is_refused(
    database_store: ModelRegistry, model: str, tmp_path: Path
) -> None:
    store = database_store
    held = HeldOutSet(examples=HeldOutSet.load_builtin().examples[30:40])
    store.put_held_out(held, model=model)
    (file,) = [
        path
        for path in store._mlflow.artifact_root.rglob("held-out.jsonl.gz")
        if HeldOutSet.parse(path.read_bytes(), where="").digest == held.digest
    ]
    file.write_bytes(HeldOutSet(examples=held.examples[:5]).dump())
    with pytest.raises(CorpusUnavailable, match=held.digest):
        store.held_out(model, tmp_path)
    file.unlink()
    with pytest.raises(CorpusUnavailable, match="is missing"):
        store.held_out(model, tmp_path)


def test_champion_version_is_one_cheap_read(store: ModelRegistry, model: str, tmp_path: Path) -> None:
    with pytest.raises(NotRegistered):
        store.champion_version(model)
    store.register(head(tmp_path / "head"), model=model)
    assert store.champion_version(model) is None
    store.set_alias(model, CHAMPION, "1")
    assert store.champion_version(model) == "1"
