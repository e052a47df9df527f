"""Settings → the two stores they name: the database and the registry. Light to import; nothing is opened here."""

from db.engine import Database, Limits
from registry.store import Registry
from serving.errors import NotReady
from serving.installation import installation_key
from serving.settings import Settings


def database_of(settings: Settings) -> Database:
    """The database that the settings name.

    Raises:
        NotReady: none is named: the launcher names the embedded one.
    """
    if settings.database_url is None:
        raise NotReady("DATABASE_URL is not set: start with `valence up`, or name a database")
    read_url = settings.database_read_url
    return Database(
        settings.database_url.get_secret_value(),
        read_url=read_url.get_secret_value() if read_url else None,
        installation_key=installation_key(settings),
        limits=Limits(writers=settings.store_connections),
    )


def registry_of(settings: Settings) -> Registry:
    """The registry that the settings name.

    Raises:
        NotReady: none is named: the launcher names the one in its database.
    """
    if settings.mlflow_tracking_uri is None:
        raise NotReady("MLFLOW_TRACKING_URI is not set: start with `valence up`, or name a server or a store")
    return Registry(settings.mlflow_tracking_uri, artifact_root=settings.home / "artifacts")
