"""Clients of the two stores that the settings name: the database and the registry. Light to import; opens nothing."""

from db.connection.databases import require_reachable, sibling_url
from db.connection.engine import ConnectionObserver, Database, Limits
from db.core.cipher import Cipher
from db.embedded.server import EmbeddedPostgres
from db.errors import DatabaseError
from registry.store.model_registry import ModelRegistry
from serving.core.home import Home, read_installation_key
from serving.errors import NotReady
from serving.settings import Settings

DATABASE = "valence"
# The registry has its own database in the same server, because both keep a table of Alembic's.
REGISTRY_SUFFIX = "_mlflow"


def build_database(settings: Settings, *, watch: ConnectionObserver | None = None) -> Database:
    """Return a client of the database in the settings; `watch` is entered around each of its operations.

    Raises:
        NotReady: the settings name no database; the launcher names the embedded one.
    """
    if settings.database_url is None:
        raise NotReady("DATABASE_URL is not set: start with `valence up`, or name a database")
    read_url, direct_url = settings.database_read_url, settings.database_direct_url
    return Database(
        settings.database_url.get_secret_value(),
        read_url=read_url.get_secret_value() if read_url else None,
        direct_url=direct_url.get_secret_value() if direct_url else None,
        installation_key=read_installation_key(settings),
        cipher=build_cipher(settings),
        limits=Limits(writers=settings.store_connections),
        pooler={"auto": None, "on": True, "off": False}[settings.database_pooler],
        watch=watch,
    )


def build_cipher(settings: Settings) -> Cipher:
    """Return the cipher for texts, comments and stored answers.

    Raises:
        BadTextKeys: the setting holds no valid keys.
    """
    return Cipher.parse(settings.text_keys.get_secret_value() if settings.text_keys else "")


def build_registry(settings: Settings) -> ModelRegistry:
    """Return the registry in the settings.

    Raises:
        NotReady: the settings name no registry; the launcher names the one in its database.
    """
    if settings.mlflow_tracking_uri is None:
        raise NotReady("MLFLOW_TRACKING_URI is not set: start with `valence up`, or name a server or a store")
    return ModelRegistry(settings.mlflow_tracking_uri, artifact_root=Home(settings.home).artifacts)


def find_tracking_uri(settings: Settings) -> str:
    """Return the URI of MLflow's store: the one in the settings, else the database of the platform that runs here.

    Raises:
        NotReady: the settings name none, and the platform's database doesn't answer.
    """
    if settings.mlflow_tracking_uri is not None:
        return settings.mlflow_tracking_uri
    uri = sibling_url(settings.schema_url or EmbeddedPostgres(settings.home).url(DATABASE), REGISTRY_SUFFIX)
    try:
        require_reachable(uri)
    except DatabaseError as error:
        raise NotReady(
            "the platform's database isn't up: start it with `valence up`, or name another store by "
            "MLFLOW_TRACKING_URI"
        ) from error
    return uri


def build_running_registry(settings: Settings) -> ModelRegistry:
    """Return the registry in the settings, else that of the platform that runs here. Raise NotReady without either."""
    return build_registry(settings.model_copy(update={"mlflow_tracking_uri": find_tracking_uri(settings)}))
