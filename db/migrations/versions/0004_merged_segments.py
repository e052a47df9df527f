"""Merging and retired segments; vectors without a foreign key.

Revision: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATE = "ck_segments_state"


def upgrade() -> None:
    op.add_column("segments", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f(_STATE), "segments", type_="check")
    op.create_check_constraint(
        op.f(_STATE), "segments", "state IN ('open', 'closed', 'indexed', 'merging', 'retired')"
    )
    op.drop_constraint("fk_embeddings_text_id", "embeddings", type_="foreignkey")


def downgrade() -> None:
    op.create_foreign_key("fk_embeddings_text_id", "embeddings", "text_inputs", ["text_id"], ["id"])
    op.execute(
        """
        DO $$
        DECLARE retired integer;
        BEGIN
            FOR retired IN SELECT id FROM segments WHERE state = 'retired' LOOP
                EXECUTE format('DROP TABLE embeddings_%s', retired);
            END LOOP;
        END $$
        """
    )
    op.execute("DELETE FROM segments WHERE state IN ('merging', 'retired')")
    op.drop_constraint(op.f(_STATE), "segments", type_="check")
    op.create_check_constraint(op.f(_STATE), "segments", "state IN ('open', 'closed', 'indexed')")
    op.drop_column("segments", "retired_at")
