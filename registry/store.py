"""MLflow: registered versions, encoders, aliases and where their bundles lie. Never serves, trains or judges.

Encoders are versions of a registered model of their own, `ENCODERS`; the alias of a space names its encoder.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from registry.bundle import Bundle, Kind, Manifest
from registry.errors import (
    BundleCorrupt,
    BundleInvalid,
    CorpusUnavailable,
    NotRegistered,
    RegistryError,
    RegistryUnavailable,
)
from registry.held_out import FILE as HELD_OUT_FILE
from registry.held_out import HeldOut
from registry.layout import EncoderSettings
from registry.records import EncoderRecord, VersionRecord
from registry.revision import code_revision

MODEL = "sentiment"
CHAMPION = "champion"
ENCODERS = "encoders"

__all__ = ["CHAMPION", "ENCODERS", "MODEL", "EncoderRecord", "Registry", "VersionRecord"]

_EXPERIMENT = "valence"
_ROLE, _DIGEST, _KIND, _ENCODER, _METRICS, _SPACE, _NAME, _DIMENSIONS, _DATA, _CODE = (
    f"valence.{key}"
    for key in (
        *("role", "digest", "kind", "encoder", "metrics", "space", "name", "dimensions"),
        *("data", "code"),
    )
)
_MODEL_ROLE, _ENCODER_ROLE = "model", "encoder"
_HELD_OUT = "valence.held-out"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_PAGE = 200
_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # What a command prints as JSON is JSON alone.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Whoever asks, asks again: by itself MLflow would keep one question for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class Registry:
    """The versions in one MLflow. Connects when first asked; safe to use from several threads.

    `artifact_root` is where bundles are kept if MLflow is reached as a database; a tracking server keeps
    them where it was told to. Every method raises RegistryUnavailable if MLflow can't answer.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: Path) -> None:
        self._tracking_uri = tracking_uri
        self._artifact_root = artifact_root

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
        if manifest.kind is Kind.ENCODER:
            raise BundleInvalid(f"{manifest.name} is an encoder, not a version of a model")
        measured = dict(manifest.metrics if metrics is None else metrics)
        with _translated():
            self._ensure_model(model, _MODEL_ROLE)
            version = self._version_with(model, _DIGEST, bundle.digest)
            if version is None:
                version = self._create(model, bundle, measured, params or {}, tags or {})
            if alias is not None:
                self._client.set_registered_model_alias(model, alias, version)
        return self.version(model, version)

    def register_encoder(self, bundle: Bundle) -> EncoderRecord:
        """The encoder's entry, there or new; the first encoder of a space that updates no other defines it.

        Raises BundleInvalid for anything but an encoder.
        """
        settings = EncoderSettings.of(bundle.manifest)
        with _translated():
            self._ensure_model(ENCODERS, _ENCODER_ROLE)
            version = self._version_with(ENCODERS, _ENCODER, settings.digest)
            if version is None:
                tags = {_NAME: bundle.manifest.name, _DIMENSIONS: str(settings.dimensions)}
                version = self._create(ENCODERS, bundle, bundle.manifest.metrics, {}, tags)
            aliases = self._client.get_registered_model(ENCODERS).aliases
            if settings.space is not None and settings.base is None and settings.space not in aliases:
                self._client.set_registered_model_alias(ENCODERS, settings.space, version)
        return self.encoder(settings.digest)

    def models(self) -> list[str]:
        """The names of the models, sorted."""
        with _translated():
            found = self._client.search_registered_models(
                filter_string=f"tags.`{_ROLE}` = '{_MODEL_ROLE}'", max_results=_PAGE
            )
        return sorted(model.name for model in found)

    def versions(self, model: str = MODEL) -> list[VersionRecord]:
        """All versions of a model, oldest first. Raises NotRegistered if there is no such model."""
        with _translated():
            aliases = self._aliases(model)
            return [_version_record(entry, aliases) for entry in self._entries(model)]

    def version(self, model: str, version: str) -> VersionRecord:
        """Raises NotRegistered."""
        with _translated():
            return _version_record(self._client.get_model_version(model, version), self._aliases(model))

    def champion(self, model: str = MODEL) -> VersionRecord:
        """The version that the alias `champion` names. Raises NotRegistered if it names none."""
        with _translated():
            version = self._client.get_model_version_by_alias(model, CHAMPION).version
        return self.version(model, str(version))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Raises NotRegistered if there is no such version."""
        self.version(model, version)
        with _translated():
            self._client.set_registered_model_alias(model, alias, version)

    def champion_version(self, model: str = MODEL) -> str | None:
        """The number of the version that the alias `champion` names, None if it names none; one cheap read.

        Raises NotRegistered if there is no such model.
        """
        with _translated():
            found = self._client.get_registered_model(model).aliases.get(CHAMPION)
        return None if found is None else str(found)

    def put_held_out(self, held_out: HeldOut, *, model: str | None = None) -> str:
        """Makes it the held-out set of a model, or of every model without one of its own; returns its digest.

        Logged as an artifact of a run of its own; the set that is there already is not logged again.
        """
        with _translated():
            experiment = self._experiment()
            if self._held_out_entry(model, own=True).get("digest") == held_out.digest:
                return held_out.digest
            run = self._client.create_run(experiment, run_name="held-out set", tags={_ROLE: "held-out"})
            run_id = run.info.run_id
            self._client.log_metric(run_id, "texts", len(held_out.examples))
            self._client.log_param(run_id, "digest", held_out.digest)
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / HELD_OUT_FILE).write_bytes(held_out.dump())
                self._client.log_artifact(run_id, str(Path(scratch) / HELD_OUT_FILE))
            self._client.set_terminated(run_id)
            entry = json.dumps({"digest": held_out.digest, "uri": run.info.artifact_uri})
            # Last: whoever finds the tag finds the artifact.
            if model is None:
                self._client.set_experiment_tag(experiment, _HELD_OUT, entry)
            else:
                self._ensure_model(model, _MODEL_ROLE)
                self._client.set_registered_model_tag(model, _HELD_OUT, entry)
        return held_out.digest

    def held_out_digest(self, model: str = MODEL) -> str:
        """Which set a model is judged on. Raises NotRegistered if there is none."""
        with _translated():
            entry = self._held_out_entry(model)
        if not entry:
            raise NotRegistered(
                f"there is no held-out set for {model!r}: `valence up` registers the built-in one"
            )
        return entry["digest"]

    def held_out(self, model: str, cache: Path) -> HeldOut:
        """The set that a model is judged on; `cache` keeps it if it lies elsewhere.

        Raises NotRegistered, or CorpusUnavailable if it is gone or isn't what it was.
        """
        digest = self.held_out_digest(model)
        with _translated():
            uri = self._held_out_entry(model)["uri"]
        folder = _local_path(uri) or cache / "held-out" / digest
        path = folder / HELD_OUT_FILE
        if not path.is_file():
            if _local_path(uri) is not None:
                raise CorpusUnavailable(f"{path} is gone: bring it back, or log the set again")
            self._download_file(f"{uri}/{HELD_OUT_FILE}", path)
        found = HeldOut.parse(path.read_bytes(), where=str(path))
        if found.digest != digest:
            raise CorpusUnavailable(f"{path} is the set {found.digest}, not {digest}")
        return found

    def revision(self, model: str = MODEL) -> str:
        """A value that changes whenever a version or an alias of the model does; one cheap read."""
        with _translated():
            found = self._client.get_registered_model(model)
        return json.dumps([found.last_updated_timestamp, sorted(found.aliases.items())])

    def encoder(self, digest: str) -> EncoderRecord:
        """The encoder with this identity. Raises NotRegistered."""
        with _translated():
            for entry in self._entries(ENCODERS):
                if entry.tags.get(_ENCODER) == digest:
                    return _encoder_record(entry)
        raise NotRegistered(f"no encoder {digest} is registered")

    def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines an embedding space. Raises NotRegistered."""
        with _translated():
            return _encoder_record(self._client.get_model_version_by_alias(ENCODERS, space))

    def fetch(self, record: VersionRecord | EncoderRecord, cache: Path) -> Path:
        """A verified local folder with the bundle of a record; `cache` is used if it lies elsewhere.

        Two at once are safe. Raises BundleInvalid or BundleCorrupt, naming the file.
        """
        digest = record.bundle if isinstance(record, EncoderRecord) else record.digest
        path = _local_path(record.uri) or cache / digest
        if not path.exists():
            self._download(record.uri, path)
        found = Bundle.open(path).digest
        if found != digest:
            raise BundleCorrupt(path=path, expected=digest, actual=found)
        return path

    @cached_property
    def _client(self) -> Any:
        # MLflow reads these when it is first imported, which takes seconds.
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._tracking_uri)

    def _entries(self, model: str) -> Iterator[Any]:
        """All versions of a registered model, oldest first."""
        found: list[Any] = []
        token = None
        while token != "":
            page = self._client.search_model_versions(
                f"name = '{model}'", max_results=_PAGE, page_token=token
            )
            found.extend(page)
            token = page.token or ""
        yield from sorted(found, key=lambda entry: int(entry.version))

    def _aliases(self, model: str) -> dict[str, list[str]]:
        aliases: dict[str, list[str]] = {}
        for alias, version in self._client.get_registered_model(model).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        return aliases

    def _held_out_entry(self, model: str | None, *, own: bool = False) -> dict[str, str]:
        """The digest and the place of a model's set, or unless `own` of everybody's; empty if there is none."""
        tags: Mapping[str, str] = {}
        if model is not None:
            found = self._client.search_registered_models(filter_string=f"name = '{model}'")
            tags = found[0].tags if found else {}
        if _HELD_OUT not in tags and (model is None or not own):
            experiment = self._client.get_experiment_by_name(_EXPERIMENT)
            tags = experiment.tags if experiment is not None else {}
        entry: dict[str, str] = json.loads(tags.get(_HELD_OUT, "{}"))
        return entry

    def _version_with(self, model: str, tag: str, value: str) -> str | None:
        return next((str(e.version) for e in self._entries(model) if e.tags.get(tag) == value), None)

    def _ensure_model(self, model: str, role: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(model)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                self._client.create_registered_model(model, tags={_ROLE: role})
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
        run = self._client.create_run(self._experiment(), run_name=manifest.name, tags=made_of)
        run_id = run.info.run_id
        for name, value in metrics.items():
            self._client.log_metric(run_id, name, value)
        given = {tag.removeprefix("valence."): value for tag, value in made_of.items()}
        for name, text in {**_params(manifest), **given, **params}.items():
            self._client.log_param(run_id, name, text)
        self._client.log_artifacts(run_id, str(bundle.path), artifact_path="bundle")
        self._client.set_terminated(run_id)
        own = {
            **made_of,
            _DIGEST: bundle.digest,
            _KIND: manifest.kind.value,
            _METRICS: json.dumps(dict(metrics), sort_keys=True),
            **({_ENCODER: manifest.encoder} if manifest.encoder else {}),
            **({_SPACE: manifest.space} if manifest.space else {}),
        }
        created = self._client.create_model_version(
            model, source=f"{run.info.artifact_uri}/bundle", run_id=run_id, tags={**tags, **own}
        )
        return str(created.version)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(_EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if urlsplit(self._tracking_uri).scheme not in ("http", "https"):
            self._artifact_root.mkdir(parents=True, exist_ok=True)
            location = self._artifact_root.resolve().as_uri()
        try:
            return str(self._client.create_experiment(_EXPERIMENT, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(_EXPERIMENT).experiment_id)

    def _download_file(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incoming-") as scratch, _translated():
            _ = self._client
            from mlflow.artifacts import download_artifacts

            file = download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=self._tracking_uri)
            os.replace(file, path)

    def _download(self, uri: str, path: Path) -> None:
        if _local_path(uri) is not None:
            raise BundleInvalid(f"{path} is gone: register its bundle again, or bring the folder back")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incoming-") as scratch:
            with _translated():
                _ = self._client
                from mlflow.artifacts import download_artifacts

                folder = download_artifacts(
                    artifact_uri=uri, dst_path=scratch, tracking_uri=self._tracking_uri
                )
            Bundle.open(Path(folder)).move_to(path)


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


def _local_path(uri: str) -> Path | None:
    """The folder that a file URI or a plain path names, None for anything else."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and uri.startswith("/") else None


@contextmanager
def _translated() -> Iterator[None]:
    """Wraps what MLflow, its drivers and its HTTP client raise; no other exception leaves this module."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as exc:
        if getattr(exc, "error_code", None) in _ABSENT:
            raise NotRegistered(str(exc)) from exc
        raise RegistryUnavailable(f"MLflow can't answer: {exc}") from exc
