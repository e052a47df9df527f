"""The connection to one MLflow: its client, its experiment, its artifacts, and the translation of its errors.

Knows no version, no bundle and no alias.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from registry.errors import NotRegistered, RegistryError, RegistryUnavailable

EXPERIMENT: Final = "valence"

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Commands print JSON to stdout; MLflow must not add lines to it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Callers retry. With MLflow's own retries one call could block for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class MlflowConnection:
    """A connection that opens on first use; safe to use from several threads.

    `artifact_root` is the folder of artifacts if MLflow is reached as a database; a tracking server uses its own.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: Path) -> None:
        self.tracking_uri = tracking_uri
        self.artifact_root = artifact_root

    @cached_property
    def client(self) -> Any:
        # MLflow reads these when it is first imported, which takes seconds.
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def ensure_experiment(self) -> str:
        """Return the id of the experiment of all runs; create it if there is none."""
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None
        if urlsplit(self.tracking_uri).scheme not in ("http", "https"):
            self.artifact_root.mkdir(parents=True, exist_ok=True)
            location = self.artifact_root.resolve().as_uri()
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(EXPERIMENT).experiment_id)

    @contextmanager
    def download(self, uri: str, parent: Path) -> Iterator[Path]:
        """Yield an artifact, file or folder, in a scratch folder below `parent`; the caller may move it away."""
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".incoming-") as scratch:
            with translate_errors():
                _ = self.client
                from mlflow.artifacts import download_artifacts

                path = download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=self.tracking_uri)
            yield Path(path)


def local_path(uri: str) -> Path | None:
    """Return the folder that a file URI or a plain path names, None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and uri.startswith("/") else None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn any error of MLflow, its drivers or its HTTP client into a RegistryError."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as exc:
        if getattr(exc, "error_code", None) in _ABSENT:
            raise NotRegistered(str(exc)) from exc
        raise RegistryUnavailable(f"MLflow can't answer: {exc}") from exc
