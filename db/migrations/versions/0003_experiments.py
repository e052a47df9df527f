"""Experiments: stages, faults and decisions, and the notice that wakes the ingress replicas.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "experiments", sa.Column("stage", sa.Integer(), server_default=sa.text("1"), nullable=False)
    )
    op.add_column("experiments", sa.Column("reason", sa.Text(), nullable=True))
    op.create_table(
        "experiment_stages",
        sa.Column("experiment_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("share", sa.REAL(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_experiment_stages_experiment_id"
        ),
        sa.PrimaryKeyConstraint("experiment_id", "number", name="pk_experiment_stages"),
    )
    op.execute(
        "INSERT INTO experiment_stages (experiment_id, number, share, started_at) "
        "SELECT id, 1, share, created_at FROM experiments"
    )
    op.create_table(
        "experiment_faults",
        sa.Column("experiment_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("faults", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("faults > 0", name=op.f("ck_experiment_faults_faults")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_experiment_faults_experiment_id"
        ),
        sa.PrimaryKeyConstraint("experiment_id", "stage", "arm", name="pk_experiment_faults"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("share", sa.REAL(), nullable=True),
        sa.Column("evidence", JSONB(), nullable=False),
        sa.Column("policy", JSONB(), nullable=False),
        sa.Column("numbers", JSONB(), nullable=False),
        sa.CheckConstraint("action IN ('ramp', 'promote', 'stop')", name=op.f("ck_decisions_action")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_decisions_experiment_id"),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
    )
    op.create_index("ix_decisions_experiment_id", "decisions", ["experiment_id", "id"], unique=False)
    op.create_index(
        "ix_predictions_experiment_id",
        "predictions",
        ["experiment_id", "id"],
        unique=False,
        postgresql_where=sa.text("experiment_id IS NOT NULL"),
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        """
        CREATE FUNCTION notify_traffic() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            NOTIFY valence_traffic;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER notify_traffic AFTER INSERT OR UPDATE OR DELETE ON experiments "
        "FOR EACH STATEMENT EXECUTE FUNCTION notify_traffic()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER notify_traffic ON experiments")
    op.execute("DROP FUNCTION notify_traffic()")
    op.drop_index("ix_predictions_experiment_id", table_name="predictions")
    for table in ("decisions", "experiment_faults", "experiment_stages"):
        op.drop_table(table)
    op.drop_column("experiments", "reason")
    op.drop_column("experiments", "stage")
