"""Functions of the owner by which the application creates and drops partitions, and indexes segments.

Revision: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Columns without statistics in the parent have none in the partition.
_MAKE = """
    CREATE FUNCTION make_partition(parent text, name text, more text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        unsampled text;
    BEGIN
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS '
            'INCLUDING STORAGE %s)', name, parent, more);
        FOR unsampled IN SELECT attname FROM pg_attribute
            WHERE attrelid = parent::regclass AND attnum > 0 AND attstattarget = 0
        LOOP
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', name, unsampled);
        END LOOP;
    END $$"""

# Each takes only numbers and dates, and builds every table name from them. A partition is created separately and
# then attached, because `PARTITION OF` would lock out every reader and writer of the parent. Feedback refers to
# predictions, whose partition therefore comes first.
_FUNCTIONS = {
    "make_month(month date)": """
    DECLARE
        first timestamp := date_trunc('month', month);
        low uuid := month_floor(first);
        high uuid := month_floor(first + interval '1 month');
        parent text;
        name text;
    BEGIN
        FOREACH parent IN ARRAY ARRAY['predictions', 'feedback'] LOOP
            name := parent || to_char(first, '_YYYY_MM');
            CONTINUE WHEN to_regclass(quote_ident(name)) IS NOT NULL;
            PERFORM make_partition(parent, name, '');
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, name, low, high);
        END LOOP;
    END""",
    "drop_month(month date)": """
    DECLARE
        parent text;
        name text;
    BEGIN
        FOREACH parent IN ARRAY ARRAY['feedback', 'predictions'] LOOP
            name := parent || to_char(month, '_YYYY_MM');
            -- Detached first: a partition that others refer to can't be dropped where it is.
            EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, name);
            EXECUTE format('DROP TABLE %I', name);
        END LOOP;
    END""",
    # The check constraint lets PostgreSQL attach it without reading it.
    "make_segment(segment integer)": """
    BEGIN
        PERFORM make_partition('embeddings', 'embeddings_' || segment, format(', CHECK (segment = %s)', segment));
    END""",
    "key_segment(segment integer)": """
    BEGIN
        EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (text_id, segment)', 'embeddings_' || segment);
    END""",
    "attach_segment(segment integer)": """
    BEGIN
        EXECUTE format('ALTER TABLE embeddings ATTACH PARTITION %I FOR VALUES IN (%s)',
            'embeddings_' || segment, segment);
    END""",
    # No search uses it any more: its row was deleted first, in the same transaction.
    "drop_segment(segment integer)": """
    BEGIN
        IF EXISTS (SELECT FROM segments s WHERE s.id = segment) THEN
            RAISE EXCEPTION 'segment % is still in use', segment USING ERRCODE = 'object_in_use';
        END IF;
        EXECUTE format('DROP TABLE %I', 'embeddings_' || segment);
    END""",
    "index_segment(segment integer, m integer, ef_construction integer)": """
    DECLARE
        name text := 'embeddings_' || segment;
    BEGIN
        EXECUTE format('CREATE INDEX %I ON %I USING hnsw (embedding halfvec_ip_ops) '
            'WITH (m = %s, ef_construction = %s)', 'ix_' || name || '_hnsw', name, m, ef_construction);
    END""",
}


def upgrade() -> None:
    # The smallest UUIDv7 of a moment in UTC.
    op.execute(
        """
        CREATE FUNCTION month_floor(moment timestamp) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0')
            || '7000' || repeat('0', 16))::uuid $$
        """
    )
    op.execute(_MAKE)
    # Fixed, because the function runs as its owner, and no caller may substitute a table. PostgreSQL searches its
    # catalog first anyway.
    path = op.get_bind().scalar(
        sa.text(
            "SELECT concat_ws(', ', quote_ident(current_schema()), quote_ident(nspname)) FROM pg_namespace "
            "WHERE oid = (SELECT extnamespace FROM pg_extension WHERE extname = 'vector')"
        )
    )
    for signature, body in _FUNCTIONS.items():
        op.execute(
            f"CREATE FUNCTION {signature} RETURNS void LANGUAGE plpgsql STRICT SECURITY DEFINER "
            f"SET search_path = {path}, pg_temp AS $${body} $$"
        )
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")


def downgrade() -> None:
    for signature in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {signature}")
    op.execute("DROP FUNCTION make_partition(text, text, text)")
    op.execute("DROP FUNCTION month_floor(timestamp)")
