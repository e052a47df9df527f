"""The design of many tutorials: FastAPI, sentence-transformers, a request a thread, one INSERT by an ORM session.

`python -m benchmarks.peers.tutorial PORT`. It starts an embedded PostgreSQL in a temporary folder. Its classifier is
a nearest prototype on the sentence's vector, which costs nothing beside the pass.
"""

import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pgvector.sqlalchemy import HALFVEC
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from db.embedded.server import EmbeddedPostgres
from registry.bundles.bundle import LABELS
from registry.encoders.sources import default_source

PROTOTYPES = ("I hate it, it is awful", "it is a thing", "I love it, it is great")


class Base(DeclarativeBase):
    """The tables."""


class Row(Base):
    """A stored prediction."""

    __tablename__ = "predictions"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    label: Mapped[str]
    embedding: Mapped[Any] = mapped_column(HALFVEC(384))
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC).replace(tzinfo=None))


class Ask(BaseModel):
    """One text."""

    text: str


def main() -> None:
    """Serve until it is ended."""
    # uvicorn raises the signal that ended it once more, and then the database must be stopped as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="valence-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "home")
        postgres.initialise()
        postgres.start()
        try:
            uvicorn.run(_api(postgres), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
        finally:
            postgres.stop()


def _api(postgres: EmbeddedPostgres) -> FastAPI:
    url = postgres.create_database("tutorial").replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, pool_size=40)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE INDEX ON predictions USING hnsw (embedding halfvec_cosine_ops)"))
    model = SentenceTransformer(str(default_source().path), device="cpu")
    prototypes = model.encode(PROTOTYPES, normalize_embeddings=True)
    api = FastAPI()

    @api.post("/predict")
    def predict(ask: Ask) -> dict[str, Any]:
        vector = model.encode(ask.text, normalize_embeddings=True)
        scores = prototypes @ vector
        row = Row(text=ask.text, label=LABELS[int(scores.argmax())], embedding=vector)
        with Session(engine) as session:
            session.add(row)
            session.commit()
            return {"id": row.id, "sentiment": row.label, "scores": scores.tolist()}

    return api


if __name__ == "__main__":
    main()
