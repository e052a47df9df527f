"""The language of each prediction's text, and whether its version knows what the text says.

Revision: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("predictions", sa.Column("language", sa.Text(), nullable=True))
    op.add_column("predictions", sa.Column("supported", sa.Boolean(), nullable=True))
    op.add_column("predictions", sa.Column("mostly_unknown", sa.Boolean(), nullable=True))


def downgrade() -> None:
    for column in ("mostly_unknown", "supported", "language"):
        op.drop_column("predictions", column)
