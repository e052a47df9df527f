"""The statement that records a text key, for the engine and for rotations."""

from typing import Final, LiteralString

INSERT_TEXT_KEY: Final[LiteralString] = (
    "INSERT INTO text_keys (id, fingerprint) VALUES (:id, :fingerprint) ON CONFLICT DO NOTHING"
)
