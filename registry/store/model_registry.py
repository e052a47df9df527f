"""MLflow: registered versions, encoders, aliases and where their bundles lie. Never serves, trains or judges.

Encoders are versions of a registered model of their own, `ENCODERS`; the alias of a space names its encoder.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry.bundles.bundle import Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import EncoderSettings
from registry.data.held_out import FILE as HELD_OUT_FILE
from registry.data.held_out import HeldOutSet
from registry.errors import (
    BundleCorrupt,
    BundleInvalid,
    CorpusUnavailable,
    NotRegistered,
)
from registry.store.mlflow_client import EXPERIMENT, MlflowConnection, local_path, translate_errors
from registry.store.records import EncoderRecord, VersionRecord
from registry.store.revision import code_revision

MODEL = "sentiment"
CHAMPION = "champion"
ENCODERS = "encoders"

__all__ = ["CHAMPION", "ENCODERS", "MODEL", "EncoderRecord", "ModelRegistry", "VersionRecord"]

_ROLE, _DIGEST, _KIND, _ENCODER, _METRICS, _SPACE, _NAME, _DIMENSIONS, _DATA, _CODE = (
    f"valence.{key}"
    for key in (
        *("role", "digest", "kind", "encoder", "metrics", "space", "name", "dimensions"),
        *("data", "code"),
    )
)
_MODEL_ROLE, _ENCODER_ROLE = "model", "encoder"
_HELD_OUT = "valence.held-out"
_PAGE = 200


class ModelRegistry:
    """The versions in one MLflow. Connects when first asked; safe to use from several threads.

    `artifact_root` is where bundles are kept if MLflow is reached as a database; a tracking server keeps
    them where it was told to. Every method raises RegistryUnavailable if MLflow can't answer.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: Path) -> None:
        self._mlflow = MlflowConnection(tracking_uri, artifact_root=artifact_root)

    def register(
        self,
        bundle: Bundle,
        *,
        model: str = MODEL,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        alias: str | None = None,
    ) -> VersionRecord:
        """A version for this bundle: the one that has it already, or a new one with a run and its artifacts.

        The run says which data made it, by the digest in the manifest, and which code registered it.
        `metrics` default to those of the manifest. `alias` is set even on a version that was there before.
        Raises BundleInvalid for an encoder.
        """
        manifest = bundle.manifest
        if manifest.kind is BundleKind.ENCODER:
            raise BundleInvalid(f"{manifest.name} is an encoder, not a version of a model")
        measured = dict(manifest.metrics if metrics is None else metrics)
        with translate_errors():
            self._ensure_model(model, _MODEL_ROLE)
            version = self._version_with(model, _DIGEST, bundle.digest)
            if version is None:
                version = self._create(model, bundle, measured, params or {}, tags or {})
            if alias is not None:
                self._mlflow.client.set_registered_model_alias(model, alias, version)
        return self.version(model, version)

    def register_encoder(self, bundle: Bundle) -> EncoderRecord:
        """The encoder's entry, there or new; the first encoder of a space that updates no other defines it.

        Raises BundleInvalid for anything but an encoder.
        """
        settings = EncoderSettings.from_manifest(bundle.manifest)
        with translate_errors():
            self._ensure_model(ENCODERS, _ENCODER_ROLE)
            version = self._version_with(ENCODERS, _ENCODER, settings.digest)
            if version is None:
                tags = {_NAME: bundle.manifest.name, _DIMENSIONS: str(settings.dimensions)}
                version = self._create(ENCODERS, bundle, bundle.manifest.metrics, {}, tags)
            aliases = self._mlflow.client.get_registered_model(ENCODERS).aliases
            if settings.space is not None and settings.base is None and settings.space not in aliases:
                self._mlflow.client.set_registered_model_alias(ENCODERS, settings.space, version)
        return self.encoder(settings.digest)

    def models(self) -> list[str]:
        """The names of the models, sorted."""
        with translate_errors():
            found = self._mlflow.client.search_registered_models(
                filter_string=f"tags.`{_ROLE}` = '{_MODEL_ROLE}'", max_results=_PAGE
            )
        return sorted(model.name for model in found)

    def versions(self, model: str = MODEL) -> list[VersionRecord]:
        """All versions of a model, oldest first. Raises NotRegistered if there is no such model."""
        with translate_errors():
            aliases = self._aliases(model)
            return [_version_record(entry, aliases) for entry in self._entries(model)]

    def version(self, model: str, version: str) -> VersionRecord:
        """Raises NotRegistered."""
        with translate_errors():
            return _version_record(
                self._mlflow.client.get_model_version(model, version), self._aliases(model)
            )

    def champion(self, model: str = MODEL) -> VersionRecord:
        """The version that the alias `champion` names. Raises NotRegistered if it names none."""
        with translate_errors():
            version = self._mlflow.client.get_model_version_by_alias(model, CHAMPION).version
        return self.version(model, str(version))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Raises NotRegistered if there is no such version."""
        self.version(model, version)
        with translate_errors():
            self._mlflow.client.set_registered_model_alias(model, alias, version)

    def champion_version(self, model: str = MODEL) -> str | None:
        """The number of the version that the alias `champion` names, None if it names none; one cheap read.

        Raises NotRegistered if there is no such model.
        """
        with translate_errors():
            found = self._mlflow.client.get_registered_model(model).aliases.get(CHAMPION)
        return None if found is None else str(found)

    def put_held_out(self, held_out: HeldOutSet, *, model: str | None = None) -> str:
        """Makes it the held-out set of a model, or of every model without one of its own; returns its digest.

        Logged as an artifact of a run of its own; the set that is there already is not logged again.
        """
        with translate_errors():
            experiment = self._mlflow.experiment()
            if self._held_out_entry(model, own=True).get("digest") == held_out.digest:
                return held_out.digest
            run = self._mlflow.client.create_run(
                experiment, run_name="held-out set", tags={_ROLE: "held-out"}
            )
            run_id = run.info.run_id
            self._mlflow.client.log_metric(run_id, "texts", len(held_out.examples))
            self._mlflow.client.log_param(run_id, "digest", held_out.digest)
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / HELD_OUT_FILE).write_bytes(held_out.dump())
                self._mlflow.client.log_artifact(run_id, str(Path(scratch) / HELD_OUT_FILE))
            self._mlflow.client.set_terminated(run_id)
            entry = json.dumps({"digest": held_out.digest, "uri": run.info.artifact_uri})
            # Last: whoever finds the tag finds the artifact.
            if model is None:
                self._mlflow.client.set_experiment_tag(experiment, _HELD_OUT, entry)
            else:
                self._ensure_model(model, _MODEL_ROLE)
                self._mlflow.client.set_registered_model_tag(model, _HELD_OUT, entry)
        return held_out.digest

    def held_out_digest(self, model: str = MODEL) -> str:
        """Which set a model is judged on. Raises NotRegistered if there is none."""
        with translate_errors():
            entry = self._held_out_entry(model)
        if not entry:
            raise NotRegistered(
                f"there is no held-out set for {model!r}: `valence up` registers the built-in one"
            )
        return entry["digest"]

    def held_out(self, model: str, cache: Path) -> HeldOutSet:
        """The set that a model is judged on; `cache` keeps it if it lies elsewhere.

        Raises NotRegistered, or CorpusUnavailable if it is gone or isn't what it was.
        """
        digest = self.held_out_digest(model)
        with translate_errors():
            uri = self._held_out_entry(model)["uri"]
        folder = local_path(uri) or cache / "held-out" / digest
        path = folder / HELD_OUT_FILE
        if not path.is_file():
            if local_path(uri) is not None:
                raise CorpusUnavailable(f"{path} is gone: bring it back, or log the set again")
            with self._mlflow.download(f"{uri}/{HELD_OUT_FILE}", path.parent) as file:
                file.replace(path)
        found = HeldOutSet.parse(path.read_bytes(), where=str(path))
        if found.digest != digest:
            raise CorpusUnavailable(f"{path} is the set {found.digest}, not {digest}")
        return found

    def revision(self, model: str = MODEL) -> str:
        """A value that changes whenever a version or an alias of the model does; one cheap read."""
        with translate_errors():
            found = self._mlflow.client.get_registered_model(model)
        return json.dumps([found.last_updated_timestamp, sorted(found.aliases.items())])

    def encoder(self, digest: str) -> EncoderRecord:
        """The encoder with this identity. Raises NotRegistered."""
        with translate_errors():
            for entry in self._entries(ENCODERS):
                if entry.tags.get(_ENCODER) == digest:
                    return _encoder_record(entry)
        raise NotRegistered(f"no encoder {digest} is registered")

    def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines an embedding space. Raises NotRegistered."""
        with translate_errors():
            return _encoder_record(self._mlflow.client.get_model_version_by_alias(ENCODERS, space))

    def fetch(self, record: VersionRecord | EncoderRecord, cache: Path) -> Path:
        """A verified local folder with the bundle of a record; `cache` is used if it lies elsewhere.

        Two at once are safe. Raises BundleInvalid or BundleCorrupt, naming the file.
        """
        digest = record.bundle if isinstance(record, EncoderRecord) else record.digest
        path = local_path(record.uri) or cache / digest
        if not path.exists():
            if local_path(record.uri) is not None:
                raise BundleInvalid(f"{path} is gone: register its bundle again, or bring the folder back")
            with self._mlflow.download(record.uri, path.parent) as folder:
                Bundle.open(folder).move_to(path)
        found = Bundle.open(path).digest
        if found != digest:
            raise BundleCorrupt(path=path, expected=digest, actual=found)
        return path

    def _entries(self, model: str) -> Iterator[Any]:
        """All versions of a registered model, oldest first."""
        found: list[Any] = []
        token = None
        while token != "":
            page = self._mlflow.client.search_model_versions(
                f"name = '{model}'", max_results=_PAGE, page_token=token
            )
            found.extend(page)
            token = page.token or ""
        yield from sorted(found, key=lambda entry: int(entry.version))

    def _aliases(self, model: str) -> dict[str, list[str]]:
        aliases: dict[str, list[str]] = {}
        for alias, version in self._mlflow.client.get_registered_model(model).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        return aliases

    def _held_out_entry(self, model: str | None, *, own: bool = False) -> dict[str, str]:
        """The digest and the place of a model's set, or unless `own` of everybody's; empty if there is none."""
        tags: Mapping[str, str] = {}
        if model is not None:
            found = self._mlflow.client.search_registered_models(filter_string=f"name = '{model}'")
            tags = found[0].tags if found else {}
        if _HELD_OUT not in tags and (model is None or not own):
            experiment = self._mlflow.client.get_experiment_by_name(EXPERIMENT)
            tags = experiment.tags if experiment is not None else {}
        entry: dict[str, str] = json.loads(tags.get(_HELD_OUT, "{}"))
        return entry

    def _version_with(self, model: str, tag: str, value: str) -> str | None:
        return next((str(e.version) for e in self._entries(model) if e.tags.get(tag) == value), None)

    def _ensure_model(self, model: str, role: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow.client.get_registered_model(model)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                self._mlflow.client.create_registered_model(model, tags={_ROLE: role})
            except MlflowException as clash:
                if clash.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def _create(
        self,
        model: str,
        bundle: Bundle,
        metrics: Mapping[str, float],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> str:
        manifest = bundle.manifest
        made_of = {_CODE: code_revision()}
        if "data" in manifest.provenance:
            made_of[_DATA] = str(manifest.provenance["data"])
        run = self._mlflow.client.create_run(self._mlflow.experiment(), run_name=manifest.name, tags=made_of)
        run_id = run.info.run_id
        for name, value in metrics.items():
            self._mlflow.client.log_metric(run_id, name, value)
        given = {tag.removeprefix("valence."): value for tag, value in made_of.items()}
        for name, text in {**_params(manifest), **given, **params}.items():
            self._mlflow.client.log_param(run_id, name, text)
        self._mlflow.client.log_artifacts(run_id, str(bundle.path), artifact_path="bundle")
        self._mlflow.client.set_terminated(run_id)
        own = {
            **made_of,
            _DIGEST: bundle.digest,
            _KIND: manifest.kind.value,
            _METRICS: json.dumps(dict(metrics), sort_keys=True),
            **({_ENCODER: manifest.encoder} if manifest.encoder else {}),
            **({_SPACE: manifest.space} if manifest.space else {}),
        }
        created = self._mlflow.client.create_model_version(
            model, source=f"{run.info.artifact_uri}/bundle", run_id=run_id, tags={**tags, **own}
        )
        return str(created.version)


def _params(manifest: Manifest) -> dict[str, str]:
    """What a run shows of how its bundle was made; MLflow takes 6,000 characters a value."""
    shown = {f"settings.{name}": value for name, value in manifest.settings.items()}
    shown |= {f"provenance.{name}": value for name, value in manifest.provenance.items()}
    return {name: str(value)[:6000] for name, value in shown.items()}


def _version_record(entry: Any, aliases: Mapping[str, list[str]]) -> VersionRecord:
    tags = dict(entry.tags)
    version = str(entry.version)
    return VersionRecord(
        model=entry.name,
        version=version,
        kind=tags.get(_KIND, "unknown"),
        digest=tags.get(_DIGEST, f"unknown:{entry.name}/{version}"),
        encoder=tags.get(_ENCODER),
        uri=entry.source or "",
        aliases=tuple(sorted(aliases.get(version, ()))),
        metrics=json.loads(tags.get(_METRICS, "{}")),
        tags={name: value for name, value in tags.items() if name != _METRICS},
        created_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, tz=UTC),
    )


def _encoder_record(entry: Any) -> EncoderRecord:
    tags = entry.tags
    return EncoderRecord(
        digest=tags[_ENCODER],
        bundle=tags[_DIGEST],
        name=tags[_NAME],
        space=tags.get(_SPACE),
        dimensions=int(tags[_DIMENSIONS]),
        uri=entry.source,
    )
