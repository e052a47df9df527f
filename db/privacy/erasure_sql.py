"""The statements of an erasure. Owns SQL text; every value is a bound parameter."""

from typing import Final, LiteralString

EXISTS: Final[dict[str, LiteralString]] = {
    "user": "SELECT EXISTS (SELECT FROM users WHERE id = :subject)",
    "text": "SELECT EXISTS (SELECT FROM text_inputs WHERE id = :subject) OR EXISTS ("
    "SELECT FROM audit_log WHERE action = 'text.erase' AND subject = :name)",
}

# Erased rows point to these; nobody can use the key, and no space has the text.
PLACEHOLDERS: Final[tuple[LiteralString, ...]] = (
    "INSERT INTO text_inputs (id, content, spaces) VALUES (:nobody, '', '{}') ON CONFLICT DO NOTHING",
    (
        "INSERT INTO api_keys (id, digest, role, name, revoked_at) "
        "VALUES (:nobody, decode(repeat('00', 32), 'hex'), 'client', 'erased', now()) ON CONFLICT DO NOTHING"
    ),
)

_THEIRS: Final[LiteralString] = "(user_id = :subject OR (holder_id = :subject AND user_id IS NULL))"

CANDIDATES: Final[dict[str, LiteralString]] = {
    "user": "SELECT text_id FROM predictions WHERE {whose} ORDER BY id LIMIT :limit".replace(
        "{whose}", _THEIRS
    ),
    "text": "SELECT CAST(:subject AS uuid) AS text_id",
}

TEXT_LOCKS: Final[LiteralString] = (
    "SELECT id FROM text_inputs WHERE id = ANY(CAST(:texts AS uuid[])) ORDER BY id FOR UPDATE"
)

_DOOMED: Final[LiteralString] = (
    "SELECT id, holder_id FROM predictions WHERE {whose} AND text_id = ANY(CAST(:texts AS uuid[])) "
    "ORDER BY id LIMIT :limit FOR UPDATE"
)
DOOMED: Final[dict[str, LiteralString]] = {
    "user": _DOOMED.replace("{whose}", _THEIRS),
    "text": _DOOMED.replace("{whose}", "text_id = :subject"),
}

COMMENTS: Final[LiteralString] = (
    "SELECT holder_id, comment IS NOT NULL OR sealed IS NOT NULL AS commented FROM feedback "
    "WHERE prediction_id = ANY(CAST(:ids AS uuid[]))"
)

FEEDBACK: Final[LiteralString] = (
    "UPDATE feedback SET comment = NULL, sealed = NULL, holder_id = gen_random_uuid(), key_id = :nobody "
    "WHERE prediction_id = ANY(CAST(:ids AS uuid[])) "
    "AND holder_id = coalesce(CAST(:holder AS uuid), holder_id)"
)

OWN_FEEDBACK: Final[LiteralString] = (
    "SELECT prediction_id, comment IS NOT NULL OR sealed IS NOT NULL AS commented FROM feedback "
    "WHERE holder_id = :subject ORDER BY prediction_id FOR UPDATE"
)

# A stored answer lists its predictions in `names`; for answers of an earlier release only their text tells. It is
# read as escaped bytes, which can't be malformed.
REPEATABLE: Final[LiteralString] = r"""
    DELETE FROM idempotency i WHERE i.holder_id = ANY(CAST(:holders AS uuid[]))
    AND (i.names && CAST(:ids AS uuid[]) OR i.names IS NULL AND EXISTS (
        SELECT FROM regexp_matches(encode(i.answer, 'escape'),
            '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', 'g') AS found (parts)
        WHERE CAST(found.parts[1] AS uuid) = ANY(CAST(:ids AS uuid[]))))"""

_UNIT: Final[LiteralString] = "coalesce(unit, CAST(user_id AS text), request_id)"
_ALIAS: Final[LiteralString] = (
    "left(encode(sha256(convert_to(concat_ws('/', CAST(:salt AS text), {what}), 'UTF8')), 'hex'), 32)"
)

# A unit's answers in an experiment share an alias; so do the answers of champion and shadow to one text.
PREDICTIONS: Final[LiteralString] = """
    UPDATE predictions SET text_id = :nobody, holder_id = :nobody, key_id = :nobody, user_id = NULL,
        unit = CASE WHEN experiment_id IS NOT NULL THEN {unit} END, request_id = {request},
        scores = '{}', confidence = least(floor(confidence * 10), 9) / 10 + 0.05
    WHERE id = ANY(CAST(:ids AS uuid[]))""".replace(
    "{unit}", _ALIAS.replace("{what}", "experiment_id, " + _UNIT)
).replace("{request}", _ALIAS.replace("{what}", "text_id, request_id"))

_NAMED: Final[LiteralString] = "EXISTS (SELECT FROM predictions p WHERE p.text_id = {text})"

VECTORS: Final[LiteralString] = """
    DELETE FROM embeddings e USING segments s
    WHERE s.id = e.segment AND e.text_id = ANY(CAST(:texts AS uuid[])) AND NOT {named}
    RETURNING e.text_id, s.space, e.embedding::real[] AS vector""".replace(
    "{named}", _NAMED.replace("{text}", "e.text_id")
)

TEXTS: Final[LiteralString] = (
    "DELETE FROM text_inputs t WHERE t.id = ANY(CAST(:texts AS uuid[])) AND NOT {named} RETURNING t.id"
).replace("{named}", _NAMED.replace("{text}", "t.id"))

IDEMPOTENCY: Final[LiteralString] = "DELETE FROM idempotency WHERE holder_id = :subject"

JOBS: Final[LiteralString] = (
    "DELETE FROM jobs WHERE holder_id = :subject AND state IN ('done', 'failed', 'cancelled')"
)
