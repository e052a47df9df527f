"""All repositories of one database: the real ones, or fakes that share a store."""

from dataclasses import dataclass
from typing import Any

from db.accounts.audit import AuditRepository
from db.accounts.keys import KeyRepository
from db.accounts.users import UserRepository
from db.analytics.disagreements import DisagreementRepository
from db.analytics.labels import LabelRepository
from db.analytics.windows import WindowRepository
from db.connection.engine import Database
from db.embeddings.spaces import SpaceRepository
from db.embeddings.vectors import VectorRepository
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository
from db.models.evaluations import EvaluationRepository
from db.models.promotions import PromotionRepository
from db.predictions.feedback import FeedbackRepository
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.predictions import PredictionRepository
from db.predictions.writer import PredictionWriter
from db.privacy.erasure import ErasureRepository
from db.search.keywords import KeywordRepository
from db.search.similarity import SimilarityRepository
from tests.fakes.accounts import FakeAuditRepository, FakeKeyRepository, FakeUserRepository
from tests.fakes.analytics import FakeDisagreementRepository, FakeLabelRepository, FakeWindowRepository
from tests.fakes.erasure import FakeErasureRepository
from tests.fakes.experiments import FakeExperimentRepository
from tests.fakes.models import FakeEvaluationRepository, FakePromotionRepository
from tests.fakes.predictions import (
    FakeFeedbackRepository,
    FakeIdempotencyRepository,
    FakePredictionRepository,
    FakePredictionWriter,
)
from tests.fakes.search import FakeKeywordRepository, FakeSimilarityRepository, FakeVectorRepository
from tests.fakes.spaces import FakeSpaceRepository
from tests.fakes.store import FakeStore
from tests.support.postgres import SPACE


@dataclass(frozen=True, kw_only=True)
class Repositories:
    """One repository of each kind, all over the same rows."""

    users: Any
    keys: Any
    audit: Any
    writer: Any
    idempotency: Any
    predictions: Any
    feedback: Any
    experiments: Any
    counts: Any
    promotions: Any
    evaluations: Any
    spaces: Any
    vectors: Any
    similarity: Any
    keywords: Any
    labels: Any
    windows: Any
    disagreements: Any
    erasure: Any


def fake_repositories(store: FakeStore) -> Repositories:
    """Return the fakes of all repositories over one store."""
    experiments = FakeExperimentRepository(store)
    return Repositories(
        users=FakeUserRepository(store),
        keys=FakeKeyRepository(store),
        audit=FakeAuditRepository(store),
        writer=FakePredictionWriter(store),
        idempotency=FakeIdempotencyRepository(store),
        predictions=FakePredictionRepository(store),
        feedback=FakeFeedbackRepository(store),
        experiments=experiments,
        counts=experiments,
        promotions=FakePromotionRepository(store, experiments.experiments),
        evaluations=FakeEvaluationRepository(store),
        spaces=FakeSpaceRepository(store, SPACE),
        vectors=FakeVectorRepository(store),
        similarity=FakeSimilarityRepository(store),
        keywords=FakeKeywordRepository(store),
        labels=FakeLabelRepository(store),
        windows=FakeWindowRepository(store),
        disagreements=FakeDisagreementRepository(store),
        erasure=FakeErasureRepository(store),
    )


def stored_repositories(database: Database) -> Repositories:
    """Return all repositories of an open database."""
    similarity = SimilarityRepository(database, space=SPACE)
    return Repositories(
        users=UserRepository(database),
        keys=KeyRepository(database),
        audit=AuditRepository(database),
        writer=PredictionWriter(database, space=SPACE),
        idempotency=IdempotencyRepository(database),
        predictions=PredictionRepository(database),
        feedback=FeedbackRepository(database),
        experiments=ExperimentRepository(database),
        counts=CountRepository(database),
        promotions=PromotionRepository(database),
        evaluations=EvaluationRepository(database),
        spaces=SpaceRepository(database),
        vectors=VectorRepository(database, space=SPACE),
        similarity=similarity,
        keywords=KeywordRepository(database, space=SPACE),
        labels=LabelRepository(database, space=SPACE),
        windows=WindowRepository(database, space=SPACE),
        disagreements=DisagreementRepository(database, space=SPACE),
        erasure=ErasureRepository(database, similarity, space=SPACE),
    )
