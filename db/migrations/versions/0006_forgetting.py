"""No statistics on texts, vectors, comments and units, so that no erased value stays in them.

Revision: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("text_inputs", "content"),
    ("embeddings", "embedding"),
    ("feedback", "comment"),
    ("idempotency", "answer"),
    ("idempotency", "body_digest"),
    ("predictions", "request_id"),
    ("predictions", "scores"),
    ("predictions", "unit"),
)
_TREE = (
    "SELECT relid::regclass::text FROM pg_partition_tree(CAST(:name AS regclass)) "
    "UNION SELECT CAST(:name AS text)"
)


def upgrade() -> None:
    connection = op.get_bind()
    for table, column in _COLUMNS:
        kind = connection.scalar(
            sa.text(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = CAST(:name AS regclass) AND attname = :column"
            ),
            {"name": table, "column": column},
        )
        # The same type: this rewrites nothing, and drops the collected statistics.
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}")
        _alter(table, f"ALTER COLUMN {column} SET STATISTICS 0")
    # An expression index has its own statistics.
    op.execute("ALTER INDEX ix_text_inputs_words ALTER COLUMN 1 SET STATISTICS 0")
    # Again, because setting a type, even the same, resets the storage.
    _alter("embeddings", "ALTER COLUMN embedding SET STORAGE PLAIN")


def downgrade() -> None:
    op.execute("ALTER INDEX ix_text_inputs_words ALTER COLUMN 1 SET STATISTICS -1")
    for table, column in _COLUMNS:
        _alter(table, f"ALTER COLUMN {column} SET STATISTICS -1")


def _alter(table: str, change: str) -> None:
    """Change a table and all its partitions."""
    for name in op.get_bind().scalars(sa.text(_TREE), {"name": table}).all():
        op.execute(f"ALTER TABLE ONLY {name} {change}")
