"""The statements of a rotation, by kind of value. Every value is a bound parameter."""

from typing import Final, LiteralString

# The table of each kind, its key, and what its placeholders mean. `last` ends a step; `plain` holds for rows with a
# plain value; the empty text is the placeholder of erased ones. A stored answer and the digest of its request's body,
# 32 bytes, are one value.
_PARTS: Final[dict[str, dict[str, LiteralString]]] = {
    "texts": {
        "table": "text_inputs",
        "key": "id",
        "after": "CAST(:id AS uuid)",
        "last": "CAST(:last_id AS uuid)",
        "value": "content",
        "plain": "sealed IS NULL AND content <> ''",
    },
    "comments": {
        "table": "feedback",
        "key": "prediction_id, holder_id",
        "after": "CAST(:prediction_id AS uuid), CAST(:holder_id AS uuid)",
        "last": "CAST(:last_prediction_id AS uuid), CAST(:last_holder_id AS uuid)",
        "value": "comment",
        "plain": "sealed IS NULL AND comment IS NOT NULL",
    },
    "answers": {
        "table": "idempotency",
        "key": "holder_id, route, key",
        "after": "CAST(:holder_id AS uuid), CAST(:route AS text), CAST(:key AS text)",
        "last": "CAST(:last_holder_id AS uuid), CAST(:last_route AS text), CAST(:last_key AS text)",
        "value": "body_digest || answer",
        "plain": "sealed IS NULL",
    },
}

_KEYS: Final[LiteralString] = (
    "SELECT {key} FROM {table} WHERE ({key}) > ({after}) ORDER BY {key} LIMIT :limit"
)
# `head` is the beginning of every value under the present key; null if there is none.
_STALE: Final[LiteralString] = """
    SELECT {key}, {value} AS plain, sealed FROM {table} WHERE ({key}) > ({after}) AND ({key}) <= ({last})
    AND CASE WHEN CAST(:head AS bytea) IS NULL THEN sealed IS NOT NULL
        ELSE ({plain}) OR substring(sealed FROM 1 FOR length(CAST(:head AS bytea))) <> CAST(:head AS bytea) END
    ORDER BY {key} FOR NO KEY UPDATE"""
_COUNTED: Final[LiteralString] = (
    "SELECT substring(sealed FROM 3 FOR get_byte(sealed, 1)) AS name, count(*) AS stored "
    "FROM {table} WHERE sealed IS NOT NULL OR ({plain}) GROUP BY 1"
)

KEYS: Final[dict[str, LiteralString]] = {kind: _KEYS.format(**parts) for kind, parts in _PARTS.items()}
STALE: Final[dict[str, LiteralString]] = {kind: _STALE.format(**parts) for kind, parts in _PARTS.items()}
UPDATE: Final[dict[str, LiteralString]] = {
    "texts": "UPDATE text_inputs SET content = convert_from(:plain, 'UTF8'), sealed = :sealed WHERE id = :id",
    "comments": "UPDATE feedback SET comment = convert_from(:plain, 'UTF8'), sealed = :sealed "
    "WHERE prediction_id = :prediction_id AND holder_id = :holder_id",
    "answers": "UPDATE idempotency SET body_digest = substring(:plain FROM 1 FOR 32), "
    "answer = substring(:plain FROM 33), sealed = :sealed "
    "WHERE holder_id = :holder_id AND route = :route AND key = :key",
}
COUNTED: Final[dict[str, LiteralString]] = {kind: _COUNTED.format(**parts) for kind, parts in _PARTS.items()}
REMOVE_KEYS: Final[LiteralString] = (
    "DELETE FROM text_keys WHERE id = ANY(CAST(:given AS text[])) AND id <> ALL(CAST(:used AS text[])) RETURNING id"
)
