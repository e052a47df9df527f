"""The statements of a rotation, by kind of value. Every value is a bound parameter."""

from typing import Final, LiteralString

_TABLE: Final[dict[str, LiteralString]] = {
    "texts": "text_inputs",
    "comments": "feedback",
    "answers": "idempotency",
}
_KEY: Final[dict[str, LiteralString]] = {
    "texts": "id",
    "comments": "prediction_id, holder_id",
    "answers": "holder_id, route, key",
}
_AFTER: Final[dict[str, LiteralString]] = {
    "texts": "CAST(:id AS uuid)",
    "comments": "CAST(:prediction_id AS uuid), CAST(:holder_id AS uuid)",
    "answers": "CAST(:holder_id AS uuid), CAST(:route AS text), CAST(:key AS text)",
}
_LAST: Final[dict[str, LiteralString]] = {
    "texts": "CAST(:last_id AS uuid)",
    "comments": "CAST(:last_prediction_id AS uuid), CAST(:last_holder_id AS uuid)",
    "answers": "CAST(:last_holder_id AS uuid), CAST(:last_route AS text), CAST(:last_key AS text)",
}
# A stored answer and the digest of its request's body, 32 bytes, are one value.
_VALUE: Final[dict[str, LiteralString]] = {
    "texts": "content",
    "comments": "comment",
    "answers": "body_digest || answer",
}
# Rows with a plain value; the empty text is the placeholder of erased ones.
_PLAIN: Final[dict[str, LiteralString]] = {
    "texts": "sealed IS NULL AND content <> ''",
    "comments": "sealed IS NULL AND comment IS NOT NULL",
    "answers": "sealed IS NULL",
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

KEYS: Final[dict[str, LiteralString]] = {
    kind: _KEYS.replace("{table}", table).replace("{key}", _KEY[kind]).replace("{after}", _AFTER[kind])
    for kind, table in _TABLE.items()
}
STALE: Final[dict[str, LiteralString]] = {
    kind: _STALE.replace("{table}", table)
    .replace("{key}", _KEY[kind])
    .replace("{after}", _AFTER[kind])
    .replace("{last}", _LAST[kind])
    .replace("{value}", _VALUE[kind])
    .replace("{plain}", _PLAIN[kind])
    for kind, table in _TABLE.items()
}
UPDATE: Final[dict[str, LiteralString]] = {
    "texts": "UPDATE text_inputs SET content = convert_from(:plain, 'UTF8'), sealed = :sealed WHERE id = :id",
    "comments": "UPDATE feedback SET comment = convert_from(:plain, 'UTF8'), sealed = :sealed "
    "WHERE prediction_id = :prediction_id AND holder_id = :holder_id",
    "answers": "UPDATE idempotency SET body_digest = substring(:plain FROM 1 FOR 32), "
    "answer = substring(:plain FROM 33), sealed = :sealed "
    "WHERE holder_id = :holder_id AND route = :route AND key = :key",
}
COUNTED: Final[dict[str, LiteralString]] = {
    kind: _COUNTED.replace("{table}", table).replace("{plain}", _PLAIN[kind])
    for kind, table in _TABLE.items()
}
REMOVE_KEYS: Final[LiteralString] = (
    "DELETE FROM text_keys WHERE id <> ALL(CAST(:used AS text[])) RETURNING id"
)
