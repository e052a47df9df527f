"""A second database beside the platform's, for MLflow."""

import psycopg
import pytest
from sqlalchemy import make_url

from db.connection.databases import ensure_sibling
from db.errors import NotPermitted
from db.schema.roles import Role
from tests.support.role_urls import RoleUrls


def test_the_neighbour_is_made_once_and_is_another_database(url: str) -> None:
    result = make_url(ensure_sibling(url, "_mlflow"))
    assert ensure_sibling(url, "_mlflow") == result.render_as_string(hide_password=False)
    plain = result.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        assert connection.info.dbname == f"{make_url(url).database}_mlflow"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{result.database}"')


def test_a_role_that_may_not_create_the_database_learns_the_remedy(role_urls: RoleUrls) -> None:
    with pytest.raises(NotPermitted, match=r"_mlflow.*MLFLOW_TRACKING_URI"):
        ensure_sibling(role_urls[Role.APPLICATION], "_mlflow")
