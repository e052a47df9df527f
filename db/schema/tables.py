"""The schema as SQLAlchemy sees it: ORM classes, constraints and their names.

Owns columns and constraints; `migrations/` creates them and `db.embedded.schema_check` compares the two. Never queries.
"""

from datetime import date, datetime
from typing import Any, LiteralString
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DIMENSIONS = 384

# Replaces the text, key and holder of erased rows; every other id is greater.
NIL_ID = UUID(int=0)

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

_NOW = text("now()")


def _partial(name: str, *columns: str, where: LiteralString, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, postgresql_where=text(where))


class Base(DeclarativeBase):
    """The base class: column types by annotation, and the constraints' names."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        str: Text,
        bytes: LargeBinary,
        float: REAL,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


class InstallationRow(Base):
    """The fingerprint of the installation key that filled this database; one row."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("single", name="one_row"),)

    single: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    key_fingerprint: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class UserRow(Base):
    """A user, that predictions are about and that may own keys."""

    __tablename__ = "users"
    __table_args__ = (
        Index("uq_users_username", text("lower(username)"), unique=True),
        Index("uq_users_email", text("lower(email)"), unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str]
    email: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class ApiKeyRow(Base):
    """A key's digest (SHA-256); the key itself is shown once and never stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("role IN ('client', 'engineer', 'admin')", name="role"),
        CheckConstraint("octet_length(digest) = 32", name="digest"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    digest: Mapped[bytes] = mapped_column(unique=True)
    role: Mapped[str]
    name: Mapped[str]
    rate_limit: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class TextKeyRow(Base):
    """The fingerprint of a key that seals texts, comments and answers."""

    __tablename__ = "text_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class TextInputRow(Base):
    """A text, stored once.

    `spaces` names the embedding spaces that hold its vector, each once.
    If the text is encrypted, `sealed` holds it and `content` is empty, so that no index holds its words.
    """

    __tablename__ = "text_inputs"
    __table_args__ = (
        Index(
            "ix_text_inputs_words",
            text("to_tsvector('simple'::regconfig, content)"),
            postgresql_using="gin",
            postgresql_with={"fastupdate": "on", "gin_pending_list_limit": 16384},
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    spaces: Mapped[list[str]] = mapped_column(ARRAY(Text))
    content: Mapped[str]
    sealed: Mapped[bytes | None]


class SpaceRow(Base):
    """An embedding space: one is live; others may be building, whole or leaving.

    A whole space has a vector of every text and can become live at once. `pace` is in texts a second.
    """

    __tablename__ = "spaces"
    __table_args__ = (
        CheckConstraint("state IN ('building', 'whole', 'live', 'leaving')", name="state"),
        _partial("uq_spaces_live", "state", where="state = 'live'", unique=True),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    begun_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    live_at: Mapped[datetime | None]
    pace: Mapped[float | None]
    seen_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class SegmentRow(Base):
    """A part of a space's vectors: a partition of `embeddings`.

    It is open for writing, then closed, then replaced by an indexed copy. A `merging` segment is a copy that has no
    partition yet; a segment that a copy replaced is `retired` and no longer searched.
    """

    __tablename__ = "segments"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'closed', 'indexed', 'merging', 'retired')", name="state"),
        _partial("uq_segments_open", "space", where="state = 'open'", unique=True),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    space: Mapped[str]
    state: Mapped[str]
    rows: Mapped[int | None] = mapped_column(BigInteger)
    opened_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    closed_at: Mapped[datetime | None]
    indexed_at: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]


class EmbeddingRow(Base):
    """A text's vector of unit length; its segment tells the space.

    There is no foreign key to the text, because attaching a merged segment would check each row while writers wait.
    Instead, adding a vector locks the text, and removing a text removes its vectors first.
    """

    __tablename__ = "embeddings"
    __table_args__ = ({"postgresql_partition_by": "LIST (segment)"},)

    text_id: Mapped[UUID] = mapped_column(primary_key=True)
    segment: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    embedding: Mapped[Any] = mapped_column(HALFVEC(DIMENSIONS), nullable=False)


class ExperimentRow(Base):
    """A split of a model's traffic; one runs at a time."""

    __tablename__ = "experiments"
    __table_args__ = (
        CheckConstraint("share >= 0 AND share <= 1", name="share"),
        CheckConstraint("state IN ('running', 'stopped')", name="state"),
        _partial("uq_experiments_running", "model", where="state = 'running'", unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str]
    champion: Mapped[str]
    challenger: Mapped[str]
    share: Mapped[float]
    shadow: Mapped[bool] = mapped_column(server_default=text("false"))
    salt: Mapped[str]
    stage: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    state: Mapped[str]
    reason: Mapped[str | None]
    policy: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    stopped_at: Mapped[datetime | None]


class ExperimentStageRow(Base):
    """A period with one share, from `started_at` to the start of the next stage."""

    __tablename__ = "experiment_stages"

    experiment_id: Mapped[UUID] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    share: Mapped[float]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class ExperimentFaultRow(Base):
    """The number of texts that an arm could not answer in a stage."""

    __tablename__ = "experiment_faults"
    __table_args__ = (CheckConstraint("faults > 0", name="faults"),)

    experiment_id: Mapped[UUID] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    stage: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    arm: Mapped[str] = mapped_column(primary_key=True)
    faults: Mapped[int] = mapped_column(BigInteger)


class DecisionRow(Base):
    """An action of a policy and its evidence; a trigger refuses changes and removal."""

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint("action IN ('ramp', 'promote', 'stop')", name="action"),
        Index("ix_decisions_experiment_id", "experiment_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    experiment_id: Mapped[UUID] = mapped_column(ForeignKey("experiments.id"))
    at: Mapped[datetime] = mapped_column(server_default=_NOW)
    action: Mapped[str]
    verdict: Mapped[str]
    reason: Mapped[str]
    share: Mapped[float | None]
    evidence: Mapped[dict[str, Any]]
    policy: Mapped[dict[str, Any]]
    numbers: Mapped[dict[str, Any]]


class ExpiredMonthRow(Base):
    """The month that retention drops next, and when it was first found expired; at most one row."""

    __tablename__ = "expired_month"
    __table_args__ = (CheckConstraint("single", name="one_row"),)

    single: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    month: Mapped[date]
    noted_at: Mapped[datetime]


class PredictionRow(Base):
    """One answer of one version; the id's time selects the partition."""

    __tablename__ = "predictions"
    __table_args__ = (
        CheckConstraint("arm IN ('champion', 'challenger', 'shadow', 'named')", name="arm"),
        CheckConstraint("confidence BETWEEN 0 AND 1", name="confidence"),
        Index("ix_predictions_text_id", "text_id", "id"),
        Index("ix_predictions_holder_id", "holder_id", "id"),
        Index("ix_predictions_version", "version"),
        _partial("ix_predictions_user_id", "user_id", "id", where="user_id IS NOT NULL"),
        _partial("ix_predictions_experiment_id", "experiment_id", "id", where="experiment_id IS NOT NULL"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    text_id: Mapped[UUID] = mapped_column(ForeignKey("text_inputs.id"))
    holder_id: Mapped[UUID]
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    experiment_id: Mapped[UUID | None] = mapped_column(ForeignKey("experiments.id"))
    confidence: Mapped[float]
    queue_ms: Mapped[float]
    infer_ms: Mapped[float]
    truncated: Mapped[bool]
    language: Mapped[str | None]
    supported: Mapped[bool | None]
    mostly_unknown: Mapped[bool | None]
    model: Mapped[str]
    version: Mapped[str]
    arm: Mapped[str]
    label: Mapped[str]
    unit: Mapped[str | None]
    request_id: Mapped[str]
    scores: Mapped[dict[str, Any]]


class FeedbackRow(Base):
    """A holder's latest judgement of a prediction. `sealed` holds an encrypted comment."""

    __tablename__ = "feedback"
    __table_args__ = ({"postgresql_partition_by": "RANGE (prediction_id)"},)

    prediction_id: Mapped[UUID] = mapped_column(ForeignKey("predictions.id"), primary_key=True)
    holder_id: Mapped[UUID] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    is_correct: Mapped[bool]
    label: Mapped[str | None]
    comment: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    sealed: Mapped[bytes | None]


class IdempotencyRow(Base):
    """The stored answer to a repeated request.

    It is committed with the rows it reports and stored for 24 hours. If digest and answer are encrypted, `sealed`
    holds them and their columns are empty. `names` lists the predictions in the answer.
    """

    __tablename__ = "idempotency"
    __table_args__ = (CheckConstraint("status BETWEEN 200 AND 499 AND status <> 429", name="status"),)

    holder_id: Mapped[UUID] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(SmallInteger)
    body_digest: Mapped[bytes]
    answer: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW, index=True)
    sealed: Mapped[bytes | None]
    names: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))


class JobRow(Base):
    """A bulk scoring job and its progress."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="state"),
        Index("ix_jobs_holder_id", "holder_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    holder_id: Mapped[UUID]
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    state: Mapped[str]
    total: Mapped[int] = mapped_column(server_default=text("0"))
    done: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    options: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    finished_at: Mapped[datetime | None]


class PromotionRow(Base):
    """A change of a model's champion: intended, then done or abandoned, then final.

    `below_id` is the change whose champion this one replaced: a rollback returns to it.
    """

    __tablename__ = "promotions"
    __table_args__ = (
        CheckConstraint("act IN ('promote', 'rollback', 'external', 'policy', 'bootstrap')", name="act"),
        CheckConstraint("state IN ('intended', 'done', 'abandoned')", name="state"),
        CheckConstraint("(state = 'intended') = (settled_at IS NULL)", name="settled"),
        CheckConstraint("NOT forced OR reason IS NOT NULL", name="forced_for_a_reason"),
        Index("ix_promotions_model_id", "model", "id"),
        _partial("ix_promotions_champion", "model", "at", "id", where="state = 'done'"),
        _partial("uq_promotions_intended", "model", where="state = 'intended'", unique=True),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str]
    version_from: Mapped[str | None]
    version_to: Mapped[str | None]
    act: Mapped[str]
    state: Mapped[str]
    forced: Mapped[bool] = mapped_column(server_default=text("false"))
    gated: Mapped[bool] = mapped_column(server_default=text("false"))
    actor: Mapped[UUID | None]
    reason: Mapped[str | None]
    evidence: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    below_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("promotions.id"))
    # Not now(): a transaction may wait for the model's lock, and rows are ordered by the time under the lock.
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    settled_at: Mapped[datetime | None]


class EvaluationRow(Base):
    """A report on a bundle by a held-out set, or the request for one.

    `seen_at` is the last heartbeat of its process.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'done', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
        CheckConstraint("(state = 'done') = (report IS NOT NULL)", name="reported"),
        Index("ix_evaluations_bundle_digest", "bundle_digest", "data_digest", "id"),
        _partial(
            "uq_evaluations_running", "bundle_digest", "data_digest", where="state = 'running'", unique=True
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    bundle_digest: Mapped[str]
    data_digest: Mapped[str]
    model: Mapped[str]
    version: Mapped[str]
    state: Mapped[str]
    report: Mapped[dict[str, Any] | None]
    reason: Mapped[str | None]
    requested_by: Mapped[UUID | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    seen_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class AuditRow(Base):
    """An entry of the audit log; a trigger refuses changes and removal."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_NOW)
    actor: Mapped[UUID | None]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
