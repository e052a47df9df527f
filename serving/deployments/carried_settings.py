"""The settings of `valence up` for replicas on nodes of a cluster that has an environment of its own.

They travel as an argument of each deployment, because Ray shows no argument in its dashboard, listings, logs or command
lines; a runtime environment is shown in all of them.
"""

import os
from collections.abc import Mapping
from typing import Final, Self

from serving.core.home import Home, read_installation_key, read_token_keys
from serving.settings import OF_THE_COMMAND_LINE, Settings

# What the platform, the drivers of its database and MLflow read.
_PREFIXES: Final = ("VALENCE_", "DATABASE_", "MLFLOW_", "PG")
# For the command line and for HAProxy, not for a replica.
_LEFT_BEHIND: Final = (*OF_THE_COMMAND_LINE, "VALENCE_HAPROXY_")


class CarriedSettings:
    """The variables that a replica's settings are read from; its representation shows none of their values."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def __repr__(self) -> str:
        return f"CarriedSettings({len(self._variables)} variables)"

    @classmethod
    def collect(cls, settings: Settings, environment: Mapping[str, str]) -> Self:
        """Collect the variables of this process, with the installation key, the token keys and absolute paths."""
        variables = {
            name: value
            for name, value in environment.items()
            if name.startswith(_PREFIXES) and not name.startswith(_LEFT_BEHIND)
        }
        variables["VALENCE_HOME"] = str(settings.home.absolute())
        variables["VALENCE_INSTALLATION_KEY"] = read_installation_key(settings).hex()
        variables["VALENCE_TOKEN_KEYS"] = ",".join(key.hex() for key in read_token_keys(settings))
        log_file = settings.log_file or Home(settings.home).platform_log
        variables["VALENCE_LOG_FILE"] = str(log_file.absolute())
        return cls(variables)

    def adopt(self) -> None:
        """Replace what this process's environment says, for it and for its child processes."""
        for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
            del os.environ[name]
        os.environ |= self._variables


def receive_settings(carried: CarriedSettings | None) -> Settings:
    """Return a replica's settings: the carried ones, else those of its node's environment."""
    if carried is not None:
        carried.adopt()
    return Settings()
