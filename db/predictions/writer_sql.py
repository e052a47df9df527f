"""The statements of the writer. Owns SQL text and the order of its locks; every value is a bound parameter."""

from typing import Final, LiteralString

# Every transaction locks in the same order: idempotency rows by key, texts by id, predictions by id.
# A text in this snapshot is locked against erasure. For a text that another transaction is inserting, ON CONFLICT
# waits and then adds the space unless it is there; the transaction that adds the space adds the vector.
_TEXTS: Final[LiteralString] = """
existing AS MATERIALIZED (
    SELECT id FROM text_inputs WHERE id = ANY(%(text_id)b::uuid[]) AND spaces @> ARRAY[%(space)s::text]
    ORDER BY id FOR KEY SHARE),
given AS MATERIALIZED (
    SELECT id, content, sealed, vector
    FROM unnest(%(text_id)b::uuid[], %(content)b::text[], %(sealed)b::bytea[], %(vector)b::halfvec[])
        AS t (id, content, sealed, vector)),
put AS (
    INSERT INTO text_inputs AS t (id, content, sealed, spaces)
    SELECT id, content, sealed, ARRAY[%(space)s::text] FROM given
    WHERE id NOT IN (SELECT id FROM existing) {wanted} ORDER BY id
    ON CONFLICT (id) DO UPDATE SET spaces = t.spaces || excluded.spaces WHERE NOT t.spaces @> excluded.spaces
    RETURNING id),
embedded AS (
    INSERT INTO embeddings (text_id, segment, embedding)
    SELECT id, (SELECT id FROM segments WHERE space = %(space)s AND state = 'open'), vector
    FROM put JOIN given USING (id))"""

_PREDICTIONS: Final[LiteralString] = """
    INSERT INTO predictions (id, text_id, holder_id, key_id, user_id, experiment_id, confidence, queue_ms,
        infer_ms, truncated, language, supported, mostly_unknown, model, version, arm, label, unit, request_id,
        scores)
    SELECT id, text_id, holder_id, key_id, user_id, experiment_id, confidence, queue_ms, infer_ms,
        truncated, language, supported, mostly_unknown, model, version, arm, label, unit, request_id,
        jsonb_build_object('negative', negative, 'neutral', neutral, 'positive', positive)
    FROM {source} ORDER BY id"""

_ROWS: Final[LiteralString] = """
    unnest(%(id)b::uuid[], %(of_text)b::uuid[], %(holder_id)b::uuid[], %(key_id)b::uuid[],
        %(user_id)b::uuid[], %(experiment_id)b::uuid[], %(confidence)b::real[],
        %(queue_ms)b::real[], %(infer_ms)b::real[], %(truncated)b::boolean[],
        %(language)b::text[], %(supported)b::boolean[], %(mostly_unknown)b::boolean[],
        %(model)b::text[], %(version)b::text[], %(arm)b::text[], %(label)b::text[],
        %(unit)b::text[], %(request_id)b::text[], %(negative)b::real[], %(neutral)b::real[],
        %(positive)b::real[] {more}) AS p (id, text_id, holder_id, key_id, user_id, experiment_id, confidence,
        queue_ms, infer_ms, truncated, language, supported, mostly_unknown, model, version, arm, label, unit,
        request_id, negative, neutral, positive {name})"""

PLAIN: Final[LiteralString] = (
    "WITH "
    + _TEXTS.replace("{wanted}", "")
    + _PREDICTIONS.replace("{source}", _ROWS.replace("{more}", "").replace("{name}", ""))
)

_CLAIMS: Final[LiteralString] = """
claims AS MATERIALIZED (
    SELECT * FROM unnest(%(claim)b::integer[], %(claim_holder)b::uuid[], %(claim_route)b::text[],
        %(claim_key)b::text[], %(claim_digest)b::bytea[], %(claim_status)b::smallint[],
        %(claim_answer)b::bytea[], %(claim_sealed)b::bytea[], %(claim_names)b::text[])
        AS c (submission, holder_id, route, key, body_digest, status, answer, sealed, names)),
claimed AS (
    INSERT INTO idempotency AS i (holder_id, route, key, body_digest, status, answer, sealed, names)
    SELECT holder_id, route, key, body_digest, status, answer, sealed, names::uuid[]
    FROM claims ORDER BY holder_id, route, key
    ON CONFLICT (holder_id, route, key) DO UPDATE
    SET body_digest = excluded.body_digest, status = excluded.status, answer = excluded.answer,
        sealed = excluded.sealed, names = excluded.names, created_at = now()
    WHERE i.created_at <= now() - interval '24 hours'
    RETURNING holder_id, route, key),
refused AS MATERIALIZED (
    SELECT submission FROM claims LEFT JOIN claimed USING (holder_id, route, key) WHERE claimed.key IS NULL),
kept AS MATERIALIZED (
    SELECT * FROM {rows} WHERE submission NOT IN (SELECT submission FROM refused)),
"""

IDEMPOTENT: Final[LiteralString] = (
    "WITH "  # noqa: S608 - composed of literals only
    + _CLAIMS.replace(
        "{rows}", _ROWS.replace("{more}", ", %(submission)b::integer[]").replace("{name}", ", submission")
    )
    + _TEXTS.replace("{wanted}", "AND id IN (SELECT text_id FROM kept)")
    + ", predicted AS ("
    + _PREDICTIONS.replace("{source}", "kept")
    + ") SELECT submission FROM refused"
)

# The locks keep off an erasure until this transaction ends; after one, the prediction no longer names the text.
_BESIDE: Final[LiteralString] = """
standing AS MATERIALIZED (
    SELECT id FROM text_inputs WHERE id = ANY(%(text_id)b::uuid[]) ORDER BY id FOR KEY SHARE),
anchors AS MATERIALIZED (
    SELECT id, text_id FROM predictions
    WHERE id = ANY(%(beside)b::uuid[]) AND text_id IN (SELECT id FROM standing)
    ORDER BY id FOR KEY SHARE OF predictions),
given AS MATERIALIZED (SELECT * FROM {rows}),
dropped AS MATERIALIZED (
    SELECT DISTINCT submission FROM given LEFT JOIN anchors a ON a.id = beside AND a.text_id = given.text_id
    WHERE a.id IS NULL),
kept AS MATERIALIZED (SELECT * FROM given WHERE submission NOT IN (SELECT submission FROM dropped)),
put AS (
    UPDATE text_inputs SET spaces = spaces || %(space)s::text
    WHERE id IN (SELECT text_id FROM kept) AND NOT spaces @> ARRAY[%(space)s::text] RETURNING id),
embedded AS (
    INSERT INTO embeddings (text_id, segment, embedding)
    SELECT id, (SELECT id FROM segments WHERE space = %(space)s AND state = 'open'), vector
    FROM put JOIN unnest(%(text_id)b::uuid[], %(vector)b::halfvec[]) AS t (id, vector) USING (id)),
predicted AS ("""

BESIDE: Final[LiteralString] = (
    "WITH "  # noqa: S608 - composed of literals only
    + _BESIDE.replace(
        "{rows}",
        _ROWS.replace("{more}", ", %(beside)b::uuid[], %(submission)b::integer[]").replace(
            "{name}", ", beside, submission"
        ),
    )
    + _PREDICTIONS.replace("{source}", "kept")
    + ") SELECT submission FROM dropped"
)

ANSWERS: Final[LiteralString] = """
    SELECT submission, body_digest, status, answer, sealed
    FROM unnest(%(claim)b::integer[], %(claim_holder)b::uuid[], %(claim_route)b::text[],
        %(claim_key)b::text[])
        AS c (submission, holder_id, route, key) JOIN idempotency USING (holder_id, route, key)"""
