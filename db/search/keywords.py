"""Search by words: the stored texts that contain them, by PostgreSQL's full-text search (`simple` configuration).

Owns the statement and its bounds. Compares words literally, except for case.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg
from psycopg import sql

from db.connection.engine import Database
from db.errors import Conflict
from db.search.similarity_sql import SimilarityFilters, fitting_condition

# Texts that are ranked at most: for frequent words ranking costs more than finding.
RANKED: Final = 2_000

_FITS: Final = sql.SQL("(SELECT true FROM predictions p WHERE p.text_id = t.id AND {fitting} LIMIT 1)")
_FOUND: Final = sql.SQL(
    "WITH matching AS MATERIALIZED (SELECT t.id, t.content FROM text_inputs t "
    "WHERE to_tsvector('simple'::regconfig, t.content) @@ websearch_to_tsquery('simple'::regconfig, %(words)s) "
    "AND t.spaces @> ARRAY[%(space)s::text] AND {fits} LIMIT %(ranked)s) "
    "SELECT id, (SELECT count(*) FROM matching) FROM matching "
    "ORDER BY ts_rank_cd(to_tsvector('simple'::regconfig, content), "
    "websearch_to_tsquery('simple'::regconfig, %(words)s), 1) DESC, id LIMIT %(limit)s"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordHits:
    """Texts that contain the words, best first. `complete`: every fitting one was ranked."""

    text_ids: tuple[UUID, ...]
    complete: bool


class KeywordRepository:
    """Finds texts by words in bounded time; a search that exceeds it returns no text and isn't complete."""

    def __init__(self, database: Database, *, space: str, ranked: int = RANKED, seconds: float = 2.0) -> None:
        self._database = database
        self._space = space
        self._ranked = ranked
        self._seconds = seconds

    async def search(
        self, words: str, *, limit: int, filters: SimilarityFilters | None = None, holder: UUID | None = None
    ) -> KeywordHits:
        """Return at most `limit` texts with a fitting prediction that contain the words.

        All words are required; `or`, `-word` and "a phrase" in quotes work like in a web search. Ranked by cover
        density (Clarke et al., 2000), divided by the logarithm of the text's length.
        Raises Conflict if texts are encrypted, so no index has their words.
        """
        if self._database.cipher.has_keys:
            raise Conflict(
                "the search by words is off, because texts are encrypted here and their words in no index: "
                "leave `keywords` out, and search by meaning"
            )
        condition, values = fitting_condition(filters or SimilarityFilters(), holder)
        statement = _FOUND.format(fits=_FITS.format(fitting=condition))
        parameters = {**values, "words": words, "space": self._space, "ranked": self._ranked, "limit": limit}
        async with self._database.search() as connection:
            try:
                async with connection.transaction():
                    bound = str(round(self._seconds * 1000))
                    await connection.execute("SELECT set_config('statement_timeout', %s, true)", (bound,))
                    rows = await (await connection.execute(statement, parameters)).fetchall()
            except psycopg.errors.QueryCanceled:
                return KeywordHits(text_ids=(), complete=False)
        matching = rows[0][1] if rows else 0
        return KeywordHits(text_ids=tuple(row[0] for row in rows), complete=matching < self._ranked)

    async def merge(self) -> int:
        """Move the words of new texts from the index's pending list into the index; return the list's pages.

        Otherwise every search reads the list, and a writer has to move it once it is full.
        """
        async with self._database.begin() as connection:
            return int((await connection.exec_driver_sql("SELECT merge_words()")).scalar_one())
