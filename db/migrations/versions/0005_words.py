"""An index of the words of texts, for keyword search.

Revision: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # New texts go to the index's list of pending entries, which maintenance merges; at the default limit of 4 MB a
    # writer would sometimes have to merge it.
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_text_inputs_words ON text_inputs "
        "USING gin (to_tsvector('simple'::regconfig, content)) "
        "WITH (fastupdate = on, gin_pending_list_limit = 16384)"
    )
    # Only the owner of an index may merge its list, and the application may be another role.
    path = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(
        "CREATE FUNCTION merge_words() RETURNS bigint LANGUAGE sql SECURITY DEFINER "
        f"SET search_path = {path}, pg_temp AS "
        "$$ SELECT gin_clean_pending_list('ix_text_inputs_words'::regclass) $$"
    )
    op.execute("REVOKE ALL ON FUNCTION merge_words() FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION merge_words()")
    op.drop_index("ix_text_inputs_words", table_name="text_inputs")
