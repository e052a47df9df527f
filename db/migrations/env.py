"""Alembic's entry point: migrates the connection that `db.schema.revisions` passes, or the environment's database."""

import os

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine

from db.core.sessions import open_session
from db.core.urls import conninfo
from db.schema.revisions import comparison_options
from db.schema.tables import Base


def run(connection: Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(connection=connection, target_metadata=Base.metadata, **comparison_options())
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    info = conninfo(os.environ.get("DATABASE_DIRECT_URL") or os.environ["DATABASE_URL"])
    engine = create_engine("postgresql+psycopg://", creator=lambda: open_session(info), poolclass=NullPool)
    with engine.begin() as opened:
        run(opened)
