"""Every setting of the platform, typed, with its default and its meaning.

Read from the environment (`VALENCE_*`, and five established names). Only composition roots (deployments, standalone,
operations, cli and the workers) build a `Settings`; everything below takes plain arguments.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Count = Annotated[int, Field(ge=1)]
Gate = Annotated[float | None, BeforeValidator(lambda given: None if given in ("off", "") else given)]
Seconds = Annotated[float, Field(gt=0)]


# For `valence`, not for a platform that it starts.
OF_THE_COMMAND_LINE: Final = ("VALENCE_API_KEY", "VALENCE_OWNER_PASSWORD", "VALENCE_URL")


def _of_postgresql(url: SecretStr) -> SecretStr:
    from db.core.urls import conninfo

    conninfo(url.get_secret_value())
    return url


DatabaseUrl = Annotated[SecretStr, AfterValidator(_of_postgresql)]

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s*]+")


def _split_origins(given: object) -> object:
    if not isinstance(given, str):
        return given
    origins = tuple(part.strip().lower() for part in given.split(",") if part.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin} is no origin: write https://shop.example.org, without a path")
    return origins


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_origins)]


class Settings(BaseSettings):
    """All settings; a malformed value fails at start, by name."""

    model_config = SettingsConfigDict(env_prefix="VALENCE_", frozen=True, extra="ignore")

    home: Path = Field(
        default=Path(".valence"), description="PostgreSQL data, model artifacts, logs and admin.key"
    )
    host: str = Field(default="127.0.0.1", description="address the HTTP port binds to")
    port: int = Field(default=8000, ge=1, le=65535, description="HTTP port")

    database_url: DatabaseUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="PostgreSQL ≥ 16 with pgvector ≥ 0.8.3; unset: embedded PostgreSQL under the home",
    )
    database_read_url: DatabaseUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_READ_URL", "database_read_url"),
        description="a read replica for searches and lists; unset: the same database",
    )
    database_direct_url: DatabaseUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_DIRECT_URL", "database_direct_url"),
        description="the same database without a transaction pooler, for migrations, notices and MLflow's database; "
        "unset: DATABASE_URL",
    )
    database_pooler: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether DATABASE_URL leads to a transaction pooler (PgBouncer); auto: each connection finds out",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        description="MLflow server or store; unset: a separate database in the same PostgreSQL",
    )
    ray_address: str | None = Field(
        default=None,
        validation_alias=AliasChoices("RAY_ADDRESS", "ray_address"),
        description="address of a Ray cluster to join; unset: start Ray on this machine",
    )
    ray_token: Literal["optional", "required"] = Field(
        default="optional",
        description="whether a Ray cluster to join may be open to everybody who reaches its ports (RAY_AUTH_MODE=token "
        "closes it): joined with a warning, or refused",
    )

    installation_key: SecretStr | None = Field(
        default=None,
        description="hex key (≥ 32 bytes) behind the ids of texts; unset: made once, kept in the home",
    )
    token_keys: SecretStr | None = Field(
        default=None,
        description="hex keys (≥ 32 bytes) of tokens, commas between them: the first signs, all check; the same on "
        "each machine that serves a database; unset: one is made once and kept in the home",
    )
    text_keys: SecretStr | None = Field(
        default=None,
        description="keys for texts, comments and stored answers, `id:base64` of 32 bytes each, separated by commas "
        "(`valence db key` makes one): the first encrypts, all decrypt; `plain` before them: no new encryption; unset: "
        "nothing is encrypted",
    )
    token_seconds: Seconds = Field(default=900, description="life of a JWT from /v1/token")
    credential_cache_seconds: float = Field(
        default=3, ge=0, le=5, description="how long a checked key is trusted without asking the database"
    )
    rate_limit: float = Field(
        default=0, ge=0, description="texts per second for a key without its own limit; 0: no limit"
    )
    metrics_open: bool = Field(default=False, description="let /metrics answer without credentials")
    cors_origins: Origins = Field(
        default=(),
        description="origins whose pages may call the API from a browser, with commas between them, such as "
        "https://shop.example.org; *: all; unset: none",
    )

    privacy: Literal["off", "mask", "refuse"] = Field(
        default="off",
        description="e-mail addresses, phone and card numbers, IBANs and IP addresses in texts and comments: kept, "
        "masked before a model reads and the database keeps them, or refused (needs the extra `privacy`)",
    )

    model: str = Field(default="sentiment", description="model that answers when a request names none")
    space: str = Field(
        default="all-MiniLM-L6-v2",
        description="embedding space that the similarity index of a new installation begins with; "
        "`valence spaces` changes it",
    )
    engine: Literal["auto", "int8", "int8-per-token", "fp32", "torch"] = Field(
        default="auto",
        description="encoder engine: OpenVINO static int8, ONNX Runtime int8 with scales by token or fp32 (auto: the "
        "fastest on the machine that built the bundle), or torch (GPU)",
    )
    device: str = Field(default="cpu", description="torch device of the torch engine, e.g. cuda")
    registry_poll_seconds: Seconds = Field(
        default=1, description="seconds between reads of the registry's aliases"
    )

    gate_accuracy_difference: Gate = Field(
        default=-0.02,
        description="lowest 95 % bound of a candidate's accuracy minus the champion's; off: no gate",
    )
    gate_recall_drop: Gate = Field(
        default=0.1, description="greatest drop of any class's recall; off: no gate"
    )
    gate_ece: Gate = Field(default=0.1, description="greatest calibration error of a candidate; off: no gate")
    gate_cosine_mean: Gate = Field(
        default=0.98, description="least mean cosine to the space, for versions that claim it; off: no gate"
    )
    gate_cosine_worst: Gate = Field(
        default=0.85, description="least worst cosine to the space, for versions that claim it; off: no gate"
    )
    gate_latency_ratio: Gate = Field(
        default=2.0, description="greatest ratio of the latency to the champion's; off: no gate"
    )
    gate_flips_share: Gate = Field(
        default=None, description="greatest share of replayed texts that get another label; off: no gate"
    )
    evaluation_texts: Count = Field(
        default=1000, description="stored texts that an evaluation replays against the champion"
    )
    evaluation_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="share of the time in which an evaluation scores texts; requests have the rest",
    )

    reembedding_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="share of the time in which a re-embedding computes vectors; requests have the rest",
    )

    index_memory_mib: int = Field(
        default=1024,
        ge=64,
        description="memory of the database for building one vector index, MiB; each holds 650 vectors, which bounds "
        "the size of merged segments",
    )
    encoder_cpus: float = Field(
        default=0.5, gt=0, description="logical CPUs Ray reserves per encoder replica"
    )
    encoder_gpus: float = Field(default=0, ge=0, description="GPUs per encoder replica (torch engine)")
    encoder_threads: int = Field(
        default=0, ge=0, description="threads per encoder replica; 0: the CPUs it may use"
    )
    encoder_niceness: int = Field(
        default=15,
        ge=0,
        le=19,
        description="niceness of an encoder's threads towards the ingress and the database; 0: normal priority",
    )
    encoder_min_replicas: Count = Field(default=1, description="autoscaling: fewest encoder replicas")
    encoder_max_replicas: Count = Field(default=1, description="autoscaling: most encoder replicas")
    encoder_target_ongoing: float = Field(
        default=1.5, gt=0, description="autoscaling: batches in flight per encoder replica to aim for"
    )
    encoder_upscale_seconds: Seconds = Field(
        default=30, description="autoscaling: seconds of higher demand before replicas are added"
    )
    encoder_downscale_seconds: Seconds = Field(
        default=600,
        description="autoscaling: seconds of lower demand before replicas are drained and stopped",
    )
    encoder_warm_up_seconds: float = Field(
        default=1,
        ge=0,
        description="time for compiling shapes before the first answer; the others are compiled when idle",
    )
    encoder_grace_seconds: Seconds = Field(
        default=300,
        description="time that an unused encoder keeps running; a return to it takes no time meanwhile",
    )
    client_encoders: int = Field(
        default=1,
        ge=0,
        description="encoders beyond those of champions, experiments, spaces and engineers' requests: with fewer "
        "running, a client that names a version has its encoder started",
    )
    judge_seconds: Seconds = Field(
        default=5, description="seconds between the decisions of the policies of running experiments"
    )
    ingress_cpus: float = Field(
        default=0.2, gt=0, description="logical CPUs Ray reserves per ingress replica"
    )
    ingress_replicas: Count = Field(default=1, description="ingress replicas")
    ingress_max_ongoing: Count = Field(
        default=200,
        description="most predictions in one ingress replica at once; HAProxy answers 429 to more",
    )

    batch_texts: Count = Field(default=64, description="most texts in one remote call")
    batches_in_flight: Count = Field(
        default=2,
        description="remote calls in flight per encoder replica, counted separately for few texts and for many",
    )
    queue_texts: Count = Field(default=4096, description="most texts waiting for a batch; beyond: 429")
    queue_seconds: Seconds = Field(
        default=2, description="longest expected wait for a batch of a request of up to 4 texts; beyond: 429"
    )
    store_rows: Count = Field(
        default=1024, description="most predictions in one transaction of several requests"
    )
    store_connections: Count = Field(default=2, description="transactions in flight per ingress replica")
    request_seconds: Seconds = Field(
        default=30, description="time after which a waiting request is dropped with 503"
    )

    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="age at which predictions, feedback and texts without predictions are deleted; unset: never",
    )
    backup_days: Count = Field(
        default=30,
        description="most days that backups and the archived log are kept; receipts of erasure name the date",
    )
    wal_archive: Path | None = Field(
        default=None,
        description="folder for the embedded database's log, for restoring a point in time; unset: no log is kept",
    )

    haproxy: Literal["auto", "on", "off"] = Field(
        default="auto", description="HAProxy in front of the ingress: where its binary exists, always, never"
    )
    haproxy_source_connections: int = Field(
        default=0,
        ge=0,
        description="most connections of one address to HAProxy at once; 0: no bound, because clients may share one",
    )
    trusted_proxies: int = Field(
        default=0,
        ge=0,
        description="proxies before the platform's own that append their caller to X-Forwarded-For, so that addresses "
        "in the log and the limit of wrong credentials are those of clients",
    )
    stats_port: int = Field(
        default=0, ge=0, le=65535, description="HAProxy stats, on loopback; 0: a free port"
    )
    haproxy_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="HAProxy metrics, on loopback; 0: a free port"
    )
    drain_seconds: float = Field(
        default=5, ge=0, description="time a stopping replica has to finish its requests"
    )
    ray_memory_mib: int = Field(default=100, ge=75, description="object store of the embedded Ray")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="log threshold"
    )

    log_file: Path | None = Field(
        default=None,
        description="file that every process appends its log lines to; unset: standard error, and under `valence up` "
        "logs/platform.log in the home",
    )
    log_mib: int = Field(
        default=64,
        ge=0,
        description="size at which `valence up` puts the content of its log aside; three such parts are kept; 0: never",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="OTLP/HTTP collector that traces go to, e.g. http://127.0.0.1:4318; unset: no traces",
    )
    trace_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the requests without a trace context, or without credentials, that are traced",
    )

    url: str | None = Field(
        default=None, description="platform the command line talks to; unset: this machine's"
    )
    api_key: SecretStr | None = Field(
        default=None, description="key the command line sends; unset: the home's admin.key"
    )

    @property
    def schema_url(self) -> str | None:
        """The URL of a named database for clients that need their own session."""
        url = self.database_url and (self.database_direct_url or self.database_url)
        return url.get_secret_value() if url else None

    @property
    def slots(self) -> int:
        """Remote calls in flight of one ingress replica, enough for the most encoder replicas."""
        return self.batches_in_flight * max(1, -(-self.encoder_max_replicas // self.ingress_replicas))

    @property
    def base_url(self) -> str:
        """The URL of the platform for clients on this machine."""
        everywhere = self.host in ("0.0.0.0", "::", "")  # noqa: S104  (compared, not bound)
        host = "127.0.0.1" if everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return (self.url or f"http://{host}:{self.port}").rstrip("/")
