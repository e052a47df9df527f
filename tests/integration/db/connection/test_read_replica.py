"""A read replica: it serves searches and lists, and what was just written is still found."""

import psycopg
import pytest

from db.connection.engine import Database
from db.embeddings.vectors import VectorRepository
from db.errors import Unavailable
from db.predictions.predictions import PredictionFilters, PredictionRepository
from db.predictions.submissions import Stored
from db.schema.roles import Role
from db.search.similarity import SimilarityRepository
from tests.support.postgres import KEY, SPACE, TestServer, open_database
from tests.support.repository_tour import VECTOR
from tests.support.role_urls import RoleUrls
from tests.support.row_factories import new_key, new_submission, new_writer

pytestmark = pytest.mark.anyio


async def test_a_lagging_replica_leaves_what_was_just_written_readable(
    server: TestServer, url: str, role_urls: RoleUrls
) -> None:
    """The replica is an earlier copy, like one that lags."""
    copy = f"{role_urls.database}_copy"
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {copy} TEMPLATE {role_urls.database}")
        connection.execute(f'GRANT CONNECT ON DATABASE {copy} TO "some reader"')
    replica = role_urls[Role.READER].replace(f"/{role_urls.database}?", f"/{copy}?")
    async with open_database(role_urls[Role.APPLICATION], read_url=replica) as database:
        key = await new_key(database)
        new = new_submission(key)
        await new_writer(database).commit([new])
        result = new.predictions[0]
        predictions, similarity = PredictionRepository(database), SimilarityRepository(database, space=SPACE)
        assert (await predictions.get(result.id)).id == result.id
        vectors = VectorRepository(database, space=SPACE)
        assert await vectors.of_texts(list((await vectors.texts_of([result.id])).values()))
        # Lists and searches are as old as the replica.
        assert not (await predictions.list(PredictionFilters(), holder=key.holder_id)).items
        assert (await similarity.search(VECTOR, k=3)).results
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {copy} WITH (FORCE)")


async def test_a_replica_that_is_away_leaves_writing_and_single_predictions(role_urls: RoleUrls) -> None:
    database = Database(
        role_urls[Role.APPLICATION], read_url="postgresql://nobody@127.0.0.1:1/nothing", installation_key=KEY
    )
    await database.open()
    try:
        key = await new_key(database)
        new = new_submission(key)
        assert await new_writer(database).commit([new]) == [Stored()]
        predictions = PredictionRepository(database)
        assert (await predictions.get(new.predictions[0].id)).id == new.predictions[0].id
        with pytest.raises(Unavailable):
            await predictions.list(PredictionFilters())
    finally:
        await database.close()
