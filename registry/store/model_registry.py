"""Versions, encoders, aliases and held-out sets as they are registered in MLflow. Never serves, trains or evaluates.

Encoders are versions of a registered model of their own, `ENCODERS`; the alias of a space names its encoder.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.bundles.bundle import Bundle, BundleKind
from registry.bundles.manifest_schema import EncoderSettings
from registry.data.held_out import FILE as HELD_OUT_FILE
from registry.data.held_out import HeldOutSet
from registry.errors import (
    BundleCorrupt,
    BundleInvalid,
    CorpusUnavailable,
    NotRegistered,
    RegistryUnavailable,
)
from registry.store import entries
from registry.store.mlflow_client import EXPERIMENT, MlflowConnection, local_path, translate_errors
from registry.store.names import CHAMPION, ENCODERS, MODEL, name_filter, require_languages, require_model_name
from registry.store.records import EncoderRecord, VersionRecord
from registry.store.revision import code_revision

__all__ = ["CHAMPION", "ENCODERS", "MODEL", "EncoderRecord", "ModelRegistry", "VersionRecord"]

_MODEL_ROLE, _ENCODER_ROLE = "model", "encoder"
_HELD_OUT = "valence.held-out"
_PAGE = 200


class ModelRegistry:
    """The models, versions and encoders of one MLflow. Connects on first use; safe to use from several threads.

    `artifact_root` is the folder of bundles if MLflow is reached as a database; a tracking server uses its own.
    Every method raises RegistryUnavailable if MLflow can't answer.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: Path) -> None:
        self._mlflow = MlflowConnection(tracking_uri, artifact_root=artifact_root)

    @property
    def _client(self) -> Any:
        return self._mlflow.client

    def register(
        self,
        bundle: Bundle,
        *,
        model: str = MODEL,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        alias: str | None = None,
        name: str | None = None,
        description: str | None = None,
        languages: Sequence[str] | None = None,
    ) -> VersionRecord:
        """Return the version that has this bundle, or create one with a run and its artifacts.

        The run records the digest of the training data, from the manifest, and the revision of the registering code.
        `metrics` and `name` default to those of the manifest. `alias`, `name`, `description` and `languages` are
        set on an existing version, too.
        Raises BundleInvalid for an encoder, NameInvalid for a name that no model can have, or what is no language.
        """
        manifest = bundle.manifest
        if manifest.kind is BundleKind.ENCODER:
            raise BundleInvalid(f"{manifest.name} is an encoder, not a version of a model")
        require_model_name(model)
        require_languages(languages or ())
        own_tags = {} if languages is None else {entries.LANGUAGES: " ".join(languages)}
        logged = dict(manifest.metrics if metrics is None else metrics)
        with translate_errors():
            self._ensure_model(model, _MODEL_ROLE)
            version = self._version_with(model, entries.DIGEST, bundle.digest)
            if version is None:
                version = self._create(
                    model,
                    bundle,
                    logged,
                    params or {},
                    {**(tags or {}), **own_tags},
                    name=name,
                    description=description,
                )
            else:
                self._describe(model, version, name, description, own_tags)
            if alias is not None:
                self._client.set_registered_model_alias(model, alias, version)
        return self.version(model, version)

    def register_encoder(self, bundle: Bundle) -> EncoderRecord:
        """Return the encoder's record, registering it if need be.

        The first encoder of a space that isn't an update of another one defines the space.
        Raises BundleInvalid for a bundle that isn't an encoder.
        """
        settings = EncoderSettings.from_manifest(bundle.manifest)
        with translate_errors():
            self._ensure_model(ENCODERS, _ENCODER_ROLE)
            version = self._version_with(ENCODERS, entries.ENCODER, settings.digest)
            if version is None:
                tags = {entries.NAME: bundle.manifest.name, entries.DIMENSIONS: str(settings.dimensions)}
                version = self._create(ENCODERS, bundle, bundle.manifest.metrics, {}, tags)
            aliases = self._client.get_registered_model(ENCODERS).aliases
            if settings.space is not None and settings.base is None and settings.space not in aliases:
                self._client.set_registered_model_alias(ENCODERS, settings.space, version)
        return self.encoder(settings.digest)

    def log_evaluation(
        self, model: str, version: str, number: int, metrics: Mapping[str, float], report: Mapping[str, Any]
    ) -> None:
        """Add an evaluation to the run of a version: metrics of the step `number`, and the report as an artifact.

        A version without a run stays as it is. Raises NotRegistered.
        """
        with translate_errors():
            run_id = self._client.get_model_version(model, version).run_id
            if not run_id:
                return
            for name, value in metrics.items():
                self._client.log_metric(run_id, f"evaluation.{name}", value, step=number)
            self._client.log_dict(run_id, dict(report), f"evaluations/{number}.json")

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        with translate_errors():
            models = _pages(
                self._client.search_registered_models,
                filter_string=f"tags.`{entries.ROLE}` = '{_MODEL_ROLE}'",
            )
            return sorted(model.name for model in models)

    def versions(self, model: str = MODEL) -> list[VersionRecord]:
        """Return all versions of a model, oldest first. Raises NotRegistered if there is no such model."""
        with translate_errors():
            aliases = self._aliases(model)
            return [entries.version_record(entry, aliases) for entry in self._entries(model)]

    def version(self, model: str, version: str) -> VersionRecord:
        """Return a version of a model. Raises NotRegistered."""
        with translate_errors():
            return entries.version_record(
                self._client.get_model_version(model, version), self._aliases(model)
            )

    def champion(self, model: str = MODEL) -> VersionRecord:
        """Return the version that the alias `champion` names. Raises NotRegistered if it names none."""
        with translate_errors():
            version = self._client.get_model_version_by_alias(model, CHAMPION).version
        return self.version(model, str(version))

    def set_alias(self, model: str, alias: str, version: str, *, seconds: float | None = None) -> None:
        """Point an alias at a version.

        Raises NotRegistered if there is no such version, RegistryUnavailable if the alias couldn't be moved, or if it
        took longer than `seconds` to come to that.
        """
        begun = time.monotonic()
        self.version(model, version)
        if seconds is not None and time.monotonic() - begun > seconds:
            raise RegistryUnavailable(f"MLflow took more than {seconds:.0f} s to answer: nothing was changed")
        with translate_errors():
            self._client.set_registered_model_alias(model, alias, version)

    def champion_version(self, model: str = MODEL) -> str | None:
        """Return the number of the champion's version, None without a champion. One cheap read.

        Raises NotRegistered if there is no such model.
        """
        with translate_errors():
            version = self._client.get_registered_model(model).aliases.get(CHAMPION)
        return None if version is None else str(version)

    def put_held_out(self, held_out: HeldOutSet, *, model: str | None = None) -> str:
        """Make this the held-out set of a model, or of all models that have no set; return its digest.

        Logs the set as an artifact of a new run, unless it is the present set already.
        """
        with translate_errors():
            experiment = self._mlflow.ensure_experiment()
            if self._held_out_entry(model, own=True).get("digest") == held_out.digest:
                return held_out.digest
            run = self._client.create_run(
                experiment, run_name="held-out set", tags={entries.ROLE: "held-out"}
            )
            run_id = run.info.run_id
            self._client.log_metric(run_id, "texts", len(held_out.examples))
            self._client.log_param(run_id, "digest", held_out.digest)
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / HELD_OUT_FILE).write_bytes(held_out.dump())
                self._client.log_artifact(run_id, str(Path(scratch) / HELD_OUT_FILE))
            self._client.set_terminated(run_id)
            entry = json.dumps({"digest": held_out.digest, "uri": run.info.artifact_uri})
            # The tag is set last, so that a reader who sees it finds the artifact.
            if model is None:
                self._client.set_experiment_tag(experiment, _HELD_OUT, entry)
            else:
                self._ensure_model(model, _MODEL_ROLE)
                self._client.set_registered_model_tag(model, _HELD_OUT, entry)
        return held_out.digest

    def held_out_digest(self, model: str = MODEL) -> str:
        """Return the digest of a model's held-out set. Raises NotRegistered if there is none."""
        with translate_errors():
            entry = self._held_out_entry(model)
        if not entry:
            raise NotRegistered(
                f"there is no held-out set for {model!r}: `valence up` registers the built-in one"
            )
        return entry["digest"]

    def held_out(self, model: str, cache: Path) -> HeldOutSet:
        """Return a model's held-out set; `cache` keeps a copy of a set that isn't a local file.

        Raises NotRegistered, or CorpusUnavailable if the file is missing or has another digest.
        """
        digest = self.held_out_digest(model)
        with translate_errors():
            uri = self._held_out_entry(model)["uri"]
        folder = local_path(uri) or cache / "held-out" / digest
        path = folder / HELD_OUT_FILE
        if not path.is_file():
            if local_path(uri) is not None:
                raise CorpusUnavailable(f"{path} is missing: restore it, or log the set again")
            with self._mlflow.download(f"{uri}/{HELD_OUT_FILE}", path.parent) as file:
                file.replace(path)
        held_out = HeldOutSet.parse(path.read_bytes(), where=str(path))
        if held_out.digest != digest:
            raise CorpusUnavailable(f"{path} is the set {held_out.digest}, not {digest}")
        return held_out

    def revision(self, model: str = MODEL) -> str:
        """Return a value that changes with every version and alias of the model. One cheap read."""
        with translate_errors():
            entry = self._client.get_registered_model(model)
        return json.dumps([entry.last_updated_timestamp, sorted(entry.aliases.items())])

    def encoder(self, digest: str) -> EncoderRecord:
        """Return the encoder with this identity. Raises NotRegistered."""
        with translate_errors():
            for entry in self._entries(ENCODERS):
                if entry.tags.get(entries.ENCODER) == digest:
                    return entries.encoder_record(entry)
        raise NotRegistered(f"no encoder {digest} is registered")

    def space_encoder(self, space: str) -> EncoderRecord:
        """Return the encoder that defines an embedding space. Raises NotRegistered."""
        with translate_errors():
            return entries.encoder_record(self._client.get_model_version_by_alias(ENCODERS, space))

    def fetch(self, record: VersionRecord | EncoderRecord, cache: Path) -> Path:
        """Return a verified local folder with a record's bundle; a remote bundle is downloaded into `cache`.

        Concurrent calls are safe. Raises BundleInvalid or BundleCorrupt, naming the file.
        """
        digest = record.bundle if isinstance(record, EncoderRecord) else record.digest
        path = local_path(record.uri) or cache / digest
        if not path.exists():
            if local_path(record.uri) is not None:
                raise BundleInvalid(f"{path} is missing: restore the folder, or register its bundle again")
            with self._mlflow.download(record.uri, path.parent) as folder:
                Bundle.open(folder).move_to(path)
        actual = Bundle.open(path).digest
        if actual != digest:
            raise BundleCorrupt(path=path, expected=digest, actual=actual)
        return path

    def _entries(self, model: str) -> Iterator[Any]:
        """Yield all versions of a registered model, oldest first."""
        entries = _pages(self._client.search_model_versions, filter_string=name_filter(model))
        yield from sorted(
            (entry for entry in entries if entry.name == model), key=lambda entry: int(entry.version)
        )

    def _aliases(self, model: str) -> dict[str, list[str]]:
        aliases: dict[str, list[str]] = {}
        for alias, version in self._client.get_registered_model(model).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        return aliases

    def _held_out_entry(self, model: str | None, *, own: bool = False) -> dict[str, str]:
        """Return digest and URI of a model's held-out set, empty if there is none.

        A model without a set has the set of all models, unless `own`.
        """
        tags: Mapping[str, str] = {}
        if model is not None:
            models = _pages(self._client.search_registered_models, filter_string=name_filter(model))
            tags = next((each.tags for each in models if each.name == model), {})
        if _HELD_OUT not in tags and (model is None or not own):
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
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
                self._client.create_registered_model(model, tags={entries.ROLE: role})
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
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> str:
        manifest = bundle.manifest
        shown = name or manifest.name
        origin = {entries.CODE: code_revision()}
        if "data" in manifest.provenance:
            origin[entries.DATA] = str(manifest.provenance["data"])
        experiment = self._mlflow.ensure_experiment()
        run = self._client.create_run(experiment, run_name=shown, tags=origin)
        run_id = run.info.run_id
        for metric, value in metrics.items():
            self._client.log_metric(run_id, metric, value)
        origin_params = {tag.removeprefix("valence."): value for tag, value in origin.items()}
        for param, text in {**entries.run_params(manifest), **origin_params, **params}.items():
            self._client.log_param(run_id, param, text)
        self._client.log_artifacts(run_id, str(bundle.path), artifact_path="bundle")
        self._client.set_terminated(run_id)
        own_tags = {
            **origin,
            entries.NAME: shown,
            entries.DIGEST: bundle.digest,
            entries.KIND: manifest.kind.value,
            entries.METRICS: json.dumps(dict(metrics), sort_keys=True),
            **({entries.ENCODER: manifest.encoder} if manifest.encoder else {}),
            **({entries.SPACE: manifest.space} if manifest.space else {}),
        }
        created = self._client.create_model_version(
            model,
            source=f"{run.info.artifact_uri}/bundle",
            run_id=run_id,
            tags={**tags, **own_tags},
            description=description,
        )
        return str(created.version)

    def _describe(
        self, model: str, version: str, name: str | None, description: str | None, tags: Mapping[str, str]
    ) -> None:
        """Set tags, the name and the description of a version, and of its run; None: it stays."""
        if name is None and description is None and not tags:
            return
        for tag, value in tags.items():
            self._client.set_model_version_tag(model, version, tag, value)
        entry = self._client.get_model_version(model, version)
        if name is not None:
            self._client.set_model_version_tag(model, version, entries.NAME, name)
            self._client.update_run(entry.run_id, name=name)
        if description is not None:
            self._client.update_model_version(model, version, description=description)
        # The revision of the model changes with this, and with nothing above.
        present = self._client.get_registered_model(model).description
        self._client.update_registered_model(model, description=present)


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """Yield the items of all pages of a search."""
    token = None
    while token != "":
        page = search(**arguments, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token or ""
