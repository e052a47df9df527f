"""The embedding spaces and their states.

Revision: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spaces",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("live_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pace", sa.REAL(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('building', 'whole', 'live', 'leaving')", name=op.f("ck_spaces_state")),
        sa.PrimaryKeyConstraint("name", name="pk_spaces"),
    )
    op.create_index(
        "uq_spaces_live", "spaces", ["state"], unique=True, postgresql_where=sa.text("state = 'live'")
    )
    # Until now there was one space: the open segment's.
    op.execute(
        "INSERT INTO spaces (name, state, begun_at, live_at) SELECT space, 'live', opened_at, opened_at "
        "FROM segments WHERE state = 'open' ORDER BY id DESC LIMIT 1"
    )


def downgrade() -> None:
    op.drop_table("spaces")
