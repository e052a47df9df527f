"""The history of champions with its reasons, and the evaluations of versions.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "promotions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version_from", sa.Text(), nullable=True),
        sa.Column("version_to", sa.Text(), nullable=True),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("gated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("actor", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("evidence", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("below_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "act IN ('promote', 'rollback', 'external', 'policy', 'bootstrap')",
            name=op.f("ck_promotions_act"),
        ),
        sa.CheckConstraint("state IN ('intended', 'done', 'abandoned')", name=op.f("ck_promotions_state")),
        sa.CheckConstraint("(state = 'intended') = (settled_at IS NULL)", name=op.f("ck_promotions_settled")),
        sa.CheckConstraint(
            "NOT forced OR reason IS NOT NULL", name=op.f("ck_promotions_forced_for_a_reason")
        ),
        sa.ForeignKeyConstraint(["below_id"], ["promotions.id"], name="fk_promotions_below_id"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_index("ix_promotions_model_id", "promotions", ["model", "id"], unique=False)
    op.create_index(
        "ix_promotions_champion",
        "promotions",
        ["model", "at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'done'"),
    )
    op.create_index(
        "uq_promotions_intended",
        "promotions",
        ["model"],
        unique=True,
        postgresql_where=sa.text("state = 'intended'"),
    )
    # A finished change stays as recorded; only an intended one may still be settled.
    op.execute(
        "CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON promotions "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        """
        CREATE TRIGGER settled_once BEFORE UPDATE ON promotions FOR EACH ROW WHEN (
            OLD.state <> 'intended'
            OR (OLD.id, OLD.model, OLD.act, OLD.forced, OLD.gated, OLD.at)
                IS DISTINCT FROM (NEW.id, NEW.model, NEW.act, NEW.forced, NEW.gated, NEW.at)
            OR (OLD.version_from, OLD.version_to, OLD.actor, OLD.reason, OLD.below_id)
                IS DISTINCT FROM (NEW.version_from, NEW.version_to, NEW.actor, NEW.reason, NEW.below_id)
        ) EXECUTE FUNCTION refuse_change()
        """
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("bundle_digest", sa.Text(), nullable=False),
        sa.Column("data_digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("report", JSONB(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("requested_by", sa.Uuid(), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'done', 'failed')", name=op.f("ck_evaluations_state")),
        sa.CheckConstraint(
            "(state = 'running') = (finished_at IS NULL)", name=op.f("ck_evaluations_finished")
        ),
        sa.CheckConstraint("(state = 'done') = (report IS NOT NULL)", name=op.f("ck_evaluations_reported")),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
    )
    op.create_index(
        "ix_evaluations_bundle_digest", "evaluations", ["bundle_digest", "data_digest", "id"], unique=False
    )
    op.create_index(
        "uq_evaluations_running",
        "evaluations",
        ["bundle_digest", "data_digest"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )


def downgrade() -> None:
    op.drop_table("evaluations")
    op.drop_table("promotions")
