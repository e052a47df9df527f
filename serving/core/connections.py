"""Settings → the two stores they name: the database and the registry. Light to import; nothing is kept open here."""

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
# The registry's database, beside the other one: both keep Alembic's table.
REGISTRY_SUFFIX = "_mlflow"


def build_database(settings: Settings, *, watch: ConnectionObserver | None = None) -> Database:
    """The database that the settings name; `watch` is entered around what it does.

    Raises:
        NotReady: none is named: the launcher names the embedded one.
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
    """What encrypts and decrypts what people wrote.

    Raises:
        BadTextKeys: the setting holds no such keys.
    """
    return Cipher.parse(settings.text_keys.get_secret_value() if settings.text_keys else "")


def build_registry(settings: Settings) -> ModelRegistry:
    """The registry that the settings name.

    Raises:
        NotReady: none is named: the launcher names the one in its database.
    """
    if settings.mlflow_tracking_uri is None:
        raise NotReady("MLFLOW_TRACKING_URI is not set: start with `valence up`, or name a server or a store")
    return ModelRegistry(settings.mlflow_tracking_uri, artifact_root=Home(settings.home).artifacts)


def find_tracking_uri(settings: Settings) -> str:
    """Where MLflow keeps the registry: what the settings name, or the database of the platform that runs here.

    Raises:
        NotReady: none is named, and the platform's database doesn't answer.
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
    """The registry that the settings name, or that of the platform that runs here. Raises NotReady if neither is."""
    return build_registry(settings.model_copy(update={"mlflow_tracking_uri": find_tracking_uri(settings)}))
