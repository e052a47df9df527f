"""An index of predictions by version, for searches limited to a rare version.

Revision: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Few distinct values: the index stores each once with a list of rows, 7 bytes a prediction.
    op.create_index("ix_predictions_version", "predictions", ["version"])


def downgrade() -> None:
    op.drop_index("ix_predictions_version", table_name="predictions")
