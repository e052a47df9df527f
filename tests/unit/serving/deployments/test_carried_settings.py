"""The settings that travel with the application, and that nobody can read on the way."""

import os
import pickle
from pathlib import Path

import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from serving.deployments.app import build
from serving.deployments.carried_settings import CarriedSettings, receive_settings
from serving.settings import Settings

_URL = "postgresql://valence:pass-word@db.example.org/valence"


def _carried(home: Path) -> CarriedSettings:
    environment = {
        "VALENCE_TEXT_KEYS": "a:secret",
        "VALENCE_PORT": "8123",
        "DATABASE_URL": _URL,
        "PGSSLMODE": "require",
        "VALENCE_API_KEY": "mine",
        "RAY_AUTH_TOKEN": "ray-token",
        "LANG": "C",
    }
    return CarriedSettings.collect(Settings(home=home), environment)


def test_a_replica_has_the_settings_of_up_and_not_those_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"VALENCE_PRIVACY": "mask", "VALENCE_PORT": "9", "LANG": "de_DE"})
    settings = receive_settings(pickle.loads(pickle.dumps(_carried(tmp_path))))
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == _URL
    assert (settings.port, settings.privacy, settings.home) == (8123, "off", tmp_path)
    # An installation key of the replica's own would make the database foreign.
    assert settings.installation_key is not None
    assert settings.installation_key.get_secret_value() == (tmp_path / "installation.key").read_text()
    assert settings.log_file == tmp_path / "logs" / "platform.log"
    # Child processes, such as evaluations, read the environment.
    assert os.environ["PGSSLMODE"] == "require"
    assert os.environ["LANG"] == "de_DE"
    assert not {"VALENCE_API_KEY", "RAY_AUTH_TOKEN"} & set(os.environ)


def test_what_is_carried_shows_no_value(tmp_path: Path) -> None:
    shown = f"{_carried(tmp_path)} {_carried(tmp_path)!r}"
    assert not any(secret in shown for secret in ("secret", "pass-word", "8123"))


def test_without_carried_settings_a_replica_reads_its_nodes_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VALENCE_PORT", "8124")
    assert receive_settings(None).port == 8124


def test_a_manifest_can_build_the_application() -> None:
    """Ray Serve takes a function of one argument only, which a RayService can't fill with carried settings."""
    application = call_user_app_builder_with_args_if_necessary(build, {})
    assert isinstance(application, Application)
