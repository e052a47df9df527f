"""Encryption of texts, comments and answers: a column for the sealed value, and the fingerprints of the keys.

Revision: 0009
"""

import sqlalchemy as sa
from alembic import op

from db.errors import Conflict

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = ("text_inputs", "feedback", "idempotency")
_TREE = (
    "SELECT relid::regclass::text FROM pg_partition_tree(CAST(:name AS regclass)) "
    "UNION SELECT CAST(:name AS text)"
)


def upgrade() -> None:
    op.create_table(
        "text_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_text_keys")),
    )
    for table in _TABLES:
        # Null in every existing row, so no row is rewritten.
        op.add_column(table, sa.Column("sealed", sa.LargeBinary(), nullable=True))
        for name in op.get_bind().scalars(sa.text(_TREE), {"name": table}).all():
            op.execute(f"ALTER TABLE ONLY {name} ALTER COLUMN sealed SET STATISTICS 0")
    op.add_column("idempotency", sa.Column("names", sa.ARRAY(sa.Uuid()), nullable=True))


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM text_keys)")):
        raise Conflict(
            "texts are encrypted, which the earlier schema doesn't support: put `plain` before the keys in "
            "VALENCE_TEXT_KEYS and run `valence db encrypt`"
        )
    op.drop_column("idempotency", "names")
    for table in _TABLES:
        op.drop_column(table, "sealed")
    op.drop_table("text_keys")
