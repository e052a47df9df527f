"""Every use that a platform makes of its database, once; for roles, poolers and other connections."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from db.accounts.audit import AuditRepository
from db.accounts.keys import Key, KeyRepository
from db.accounts.users import UserRepository
from db.analytics.replay import ReplayRepository
from db.analytics.statistics import StatisticsRepository
from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.embeddings.vectors import VectorRepository
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.models.evaluations import EvaluationRepository, NewEvaluation
from db.models.promotions import Act, NewPromotion, PromotionPhase, PromotionRepository
from db.predictions.feedback import FeedbackRepository, Judgement, NewFeedback
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.partitions import NOTICE, ExpiredMonth, Partitions
from db.predictions.predictions import PredictionFilters, PredictionRepository
from db.predictions.submissions import NewText, Replayed, Stored
from db.predictions.writer import PredictionWriter
from db.privacy.erasure import ErasureRepository
from db.search.keywords import KeywordRepository
from db.search.similarity import SimilarityFilters, SimilarityRepository
from serving.control.maintenance import Maintenance
from tests.support.postgres import SPACE
from tests.support.reembedding import NEXT, build_space, new_worker
from tests.support.row_factories import (
    new_idempotency,
    new_key,
    new_submission,
    new_text,
    new_writer,
    now,
    unit_vectors,
)

VECTOR = unit_vectors(1, seed=7)[0]


async def use_every_repository(database: Database, *, many: int = 12) -> list[NewText]:
    """Use every repository, the writer, maintenance and search; return the stored texts."""
    user = await UserRepository(database).create(
        username=f"u{uuid4()}", email=f"{uuid4()}@example.org", actor=None
    )
    assert user in (await UserRepository(database).list(name=user.username)).items
    key = await new_key(database, owner_id=user.id)
    writing = new_writer(database)
    texts = [new_text() for _ in range(many)]
    # At the same time, so that a pooler gives each connection to several clients.
    await asyncio.gather(*(_write(writing, key, text) for text in texts))
    repeated = new_idempotency(key, f"again-{uuid4()}")
    assert await writing.commit([new_submission(key, idempotency=repeated)]) == [Stored()]
    assert isinstance((await writing.commit([new_submission(key, idempotency=repeated)]))[0], Replayed)
    assert await IdempotencyRepository(database).find(key.holder_id, repeated.route, repeated.key) is not None

    predictions = PredictionRepository(database)
    page = await predictions.list(PredictionFilters(sentiment="positive"), holder=key.holder_id)
    assert len(page.items) == many + 1
    one = page.items[0]
    judged = NewFeedback(
        prediction_id=one.id, holder_id=key.holder_id, key_id=key.id, is_correct=False, label="neutral"
    )
    assert isinstance(await FeedbackRepository(database).put(judged), Judgement)
    assert (await predictions.get(one.id)).feedback[0].label == "neutral"

    segments = Segments(database, SPACE)
    await segments.ensure()
    assert await segments.roll(1) is not None
    assert await writing.commit([new_submission(key, [new_text() for _ in range(many)])]) == [Stored()]
    assert await segments.roll(1) is not None
    while await segments.index_next() is not None:
        pass
    assert await segments.merge_next(fan_in=2) is not None
    while await segments.merge_next(fan_in=2) is not None:
        pass
    assert await segments.drop_next(grace=0) is not None
    partitions = Partitions(database)
    await partitions.ensure(datetime(2039, 5, 17, tzinfo=UTC))
    old = await partitions.ensure(datetime(2020, 5, 17, tzinfo=UTC))
    moment, age = datetime.now(UTC), timedelta(days=365)
    assert await partitions.drop_oldest(moment, age) == ExpiredMonth(start=old.start, is_dropped=False)
    assert await partitions.drop_oldest(moment + NOTICE, age) == ExpiredMonth(
        start=old.start, is_dropped=True
    )
    maintenance = Maintenance(database, space=SPACE)
    for chore in (maintenance.tidy, maintenance.index, maintenance.merge):
        await chore()

    similarity = SimilarityRepository(database, space=SPACE)
    for filters in (None, SimilarityFilters(sentiment="positive", is_correct=False)):
        neighbours = await similarity.search(VECTOR, k=3, filters=filters, holder=key.holder_id)
        assert neighbours.results
        assert neighbours.complete
    assert (await similarity.search(VECTOR, k=3, exact=True)).exact
    vectors = VectorRepository(database, space=SPACE)
    assert await vectors.of_texts(list((await vectors.texts_of([one.id])).values()))
    assert await ReplayRepository(database, space=SPACE).sample("sentiment", size=5, judged=5)
    await _change(database)
    assert (await KeywordRepository(database, space=SPACE).search("text", limit=3)).text_ids
    await _respace(database)
    receipt = await ErasureRepository(database, similarity, space=SPACE).erase_text(
        texts.pop().id, actor=None
    )
    assert receipt.erased.predictions
    await KeyRepository(database).touch({key.id: now()})
    assert (await KeyRepository(database).revoke(key.id, actor=None)).revoked_at is not None
    assert (await AuditRepository(database).list(limit=1)).items
    await StatisticsRepository(database).collect()
    await StatisticsRepository(database).distributions()
    return texts


async def _write(writing: PredictionWriter, key: Key, text: NewText) -> None:
    assert await writing.commit([new_submission(key, [text])]) == [Stored()]


async def _respace(database: Database) -> None:
    """Change to another embedding space, back, and remove it."""
    spaces = await build_space(database)
    await spaces.switch(NEXT, actor=None)
    await spaces.switch(SPACE, actor=None)
    assert [each.name for each in await spaces.list()] == [SPACE, NEXT]
    await spaces.leave(NEXT, actor=None, followed=0)
    assert await Segments(database, NEXT).retire()
    while await Segments(database, NEXT).drop_next(grace=0) is not None:
        pass
    work = new_worker(database)
    while await work.step() is not None:
        pass


async def _change(database: Database) -> None:
    """Run an experiment, a promotion and an evaluation from beginning to end."""
    experiments, evidence, model = ExperimentRepository(database), CountRepository(database), f"m{uuid4()}"
    experiment = await experiments.create(
        NewExperiment(model=model, champion="2", challenger="3", share=0.5, shadow=False, salt="s"),
        actor=None,
    )
    await evidence.add_faults({(experiment.id, 1, "challenger"): 2})
    assert (await evidence.counts(experiment.id)).stages
    await experiments.stop(experiment.id, actor=None, reason="over")

    history = PromotionRepository(database)
    wanted = NewPromotion(model=model, version_from=None, version_to="1", act=Act.BOOTSTRAP)
    intended = await history.intend(wanted, after=None)
    async with history.lock(model) as held:
        await held.finish(intended, PromotionPhase.DONE)
    assert (await history.state(model)).version == "1"

    evaluations = EvaluationRepository(database)
    new = NewEvaluation(bundle_digest=str(uuid4()), data_digest="d", model=model, version="1")
    evaluation = await evaluations.request(new)
    claimed = await evaluations.claim()
    assert claimed is not None
    assert claimed.id == evaluation.id
    assert await evaluations.heartbeat(evaluation.id)
    assert await evaluations.finish(evaluation.id, {"accuracy": 1.0})
