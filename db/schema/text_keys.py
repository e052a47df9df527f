"""The statement that notes a text key, as the engine and a rotation use it."""

from typing import Final, LiteralString

# A key that something is, or will be, under.
INSERT_TEXT_KEY: Final[LiteralString] = (
    "INSERT INTO text_keys (id, fingerprint) VALUES (:id, :fingerprint) ON CONFLICT DO NOTHING"
)
