"""Any interleaving of writes, merges, deletes, kills and searches shows each live text once.

Every rule runs one to a few steps: alone, killed after one of their statements, in parallel, or behind a session that
locks a text. The table of predictions must then follow from its content before and from the steps' results, and every
search must show what the table says.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from db.accounts.keys import Key
from db.accounts.users import UserRepository
from db.connection.engine import Limits
from db.embeddings.segments import Segments
from db.embeddings.vectors import VectorRepository
from db.errors import NotFound, Unavailable
from db.predictions.submissions import Stored, Submission
from db.privacy.erasure import ErasureRepository
from db.privacy.retention import Retention
from db.schema.tables import NIL_ID
from db.search.similarity import Neighbours, SimilarityFilters, SimilarityRepository
from tests.support import breadth
from tests.support.interruptible_tasks import End, InterruptibleDatabase, InterruptibleTask
from tests.support.postgres import SPACE, TestServer, open_database
from tests.support.row_factories import new_key, new_prediction, new_text, new_writer, now, unit_vectors

# Two texts have one vector, as near-duplicates may.
VECTORS = unit_vectors(30, seed=3)[[0, *range(29)]]
TEXTS = tuple(new_text(f"text {number}", vector) for number, vector in enumerate(VECTORS))
NUMBERS = {text.id: number for number, text in enumerate(TEXTS)}
KEPT = np.array([np.frombuffer(text.embedding, "<f2") for text in TEXTS]).astype(np.float32)
USERS = ("ada", "bob")
State: TypeAlias = Literal["live", "erased", "absent"]


@dataclass(frozen=True)
class Made:
    """A prediction: its user, and its text."""

    user: int
    text: int


@dataclass(frozen=True)
class Step(ABC):
    """An operation on the database."""

    # The errors that it may raise without a kill; the state in which it leaves its predictions; its most statements.
    quiet = ()
    leaves = None
    length = 2

    def aimed(self, live: list[int]) -> "Step":
        """Return this step for live texts: its numbers are indexes into their list."""
        return self

    @abstractmethod
    async def run(self, ground: "Interleavings", into: "Run") -> None: ...

    def about(self, made: Made) -> bool:
        return False


@dataclass(frozen=True)
class Write(Step):
    batch: tuple[tuple[int, tuple[int, ...]], ...]

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        submissions = []
        for user, numbers in self.batch:
            key, whose = ground.keys[user], ground.users[user]
            predictions = [new_prediction(key, TEXTS[number], user_id=whose) for number in numbers]
            submissions.append(
                Submission(texts=[TEXTS[number] for number in numbers], predictions=predictions)
            )
            into.made |= {
                each.id: Made(user, number) for each, number in zip(predictions, numbers, strict=True)
            }
        assert await new_writer(ground.database).commit(submissions) == [Stored()] * len(submissions)


@dataclass(frozen=True)
class EraseText(Step):
    quiet = (NotFound,)
    leaves = "erased"
    length = 16
    text: int

    def aimed(self, live: list[int]) -> Step:
        return EraseText(live[self.text % len(live)]) if live else self

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.erasures.erase_text(TEXTS[self.text].id, actor=None)

    def about(self, made: Made) -> bool:
        return made.text == self.text


@dataclass(frozen=True)
class EraseUser(Step):
    leaves = "erased"
    length = 30
    user: int

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.erasures.erase_user(ground.users[self.user], actor=None)

    def about(self, made: Made) -> bool:
        return made.user == self.user


@dataclass(frozen=True)
class Expire(Step):
    """Retention drops a month: predictions go, their texts stay."""

    leaves = "absent"
    texts: frozenset[int]

    def aimed(self, live: list[int]) -> Step:
        return Expire(frozenset(live[text % len(live)] for text in self.texts)) if live else self

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        async with ground.database.begin() as connection:
            ids = [TEXTS[number].id for number in self.texts]
            await connection.exec_driver_sql("DELETE FROM predictions WHERE text_id = ANY(%s)", (ids,))

    def about(self, made: Made) -> bool:
        return made.text in self.texts


@dataclass(frozen=True)
class Sweep(Step):
    length = 6

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await Retention(ground.database).sweep_texts(now())


@dataclass(frozen=True)
class Roll(Step):
    length = 7

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.segments.roll(1)


@dataclass(frozen=True)
class Index(Step):
    # It gives up soon if a writer doesn't end.
    quiet = (Unavailable,)
    length = 26

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.segments.index_next(timeout=0.05)


@dataclass(frozen=True)
class Merge(Step):
    length = 26

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.segments.merge_next(fan_in=2)


@dataclass(frozen=True)
class Drop(Step):
    # It gives up soon if a session reads the table.
    quiet = (Unavailable,)
    length = 4

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        await ground.segments.drop_next(grace=0, timeout=0.05)


@dataclass(frozen=True)
class Search(Step):
    length = 8
    text: int
    k: int
    exact: bool

    async def run(self, ground: "Interleavings", into: "Run") -> None:
        into.found = await ground.similarity.search(VECTORS[self.text], k=self.k, exact=self.exact)


class Run:
    """A step in progress: what it writes and finds, and how it ended."""

    def __init__(self, ground: "Interleavings", step: Step, *, at: int = 0) -> None:
        self.step = step.aimed(sorted(_live(ground.predictions)))
        self.made: dict[UUID, Made] = {}
        self.found: Neighbours | None = None
        self.ended = False
        self._watcher = ground.watcher
        self._script = InterruptibleTask(self.step.run(ground, self), at=at)

    @property
    def done(self) -> bool:
        return self._script.task.done()

    async def wait_until_blocked(self) -> None:
        await self._script.wait_until_blocked(self._watcher)

    async def end(self, end: End = "goes on") -> None:
        """Let the step continue, or end it; return whether it reports success."""
        cut = end != "goes on" and not self.done
        await self._script.end(self._watcher, end)
        task = self._script.task
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        excused = (*self.step.quiet, *((Unavailable, asyncio.CancelledError) if cut else ()))
        if error is not None and not isinstance(error, excused):
            raise error
        self.ended = error is None or isinstance(error, self.step.quiet)


NUMBER = st.integers(0, len(TEXTS) - 1)
USER = st.integers(0, len(USERS) - 1)
REQUEST = st.tuples(USER, st.lists(NUMBER, min_size=1, max_size=4).map(tuple))
WRITE = st.builds(Write, st.lists(REQUEST, min_size=1, max_size=3).map(tuple))
MOVE = st.sampled_from([Merge(), Index(), Roll(), Drop()])
REMOVAL = st.one_of(
    st.builds(EraseText, NUMBER),
    st.builds(EraseUser, USER),
    st.builds(Expire, st.frozensets(NUMBER, min_size=1, max_size=3)),
    st.just(Sweep()),
)
SEARCH = st.builds(Search, NUMBER, st.integers(1, len(TEXTS) + 1), st.booleans())
STEP = st.one_of(MOVE, WRITE, REMOVAL, SEARCH)
# A step, and the statement after which it stops.
HELD = STEP.flatmap(lambda step: st.tuples(st.just(step), st.integers(1, step.length)))
END: st.SearchStrategy[End] = st.sampled_from(["goes on", "killed", "cancelled"])


class Interleavings(RuleBasedStateMachine):
    """`predictions`: the expected ones; None: erased."""

    def __init__(self, server: TestServer) -> None:
        super().__init__()
        self.predictions: dict[UUID, Made | None] = {}
        self.users: list[UUID] = []
        self.keys: list[Key] = []
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._run(self._open(self._stack.enter_context(server.database())))

    async def _open(self, url: str) -> None:
        enter = self._stack.enter_async_context
        self.watcher = await enter(await psycopg.AsyncConnection.connect(url, autocommit=True))
        self._holder = await enter(await psycopg.AsyncConnection.connect(url))
        limits = Limits(repositories=6, writers=4)
        self.database = await enter(open_database(url, kind=InterruptibleDatabase, limits=limits))
        self.segments = Segments(self.database, SPACE)
        self.similarity = SimilarityRepository(self.database, space=SPACE)
        self.erasures = ErasureRepository(self.database, self.similarity, space=SPACE)
        for name in USERS:
            user = await UserRepository(self.database).create(
                username=name, email=f"{name}@a.org", actor=None
            )
            self.users.append(user.id)
            self.keys.append(await new_key(self.database, owner_id=user.id))

    def teardown(self) -> None:
        self._run(self._stack.aclose())
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._runner.run(work)

    @initialize()
    def fill(self) -> None:
        """Create four indexed segments of one size, so that there is something to merge."""
        for text in range(0, 8, 2):
            self.seal(Write(((text % 4 // 2, (text, text + 1)),)))

    @rule(step=STEP)
    def alone(self, step: Step) -> None:
        self._run(self._alone(step))

    @rule(write=WRITE)
    def seal(self, write: Write) -> None:
        """Create a further indexed segment."""
        for step in (write, Roll(), Index()):
            self._run(self._alone(step))

    @rule(held=HELD, end=END)
    def cut(self, held: tuple[Step, int], end: End) -> None:
        """End a step after one of its statements; a step with fewer statements ends by itself."""
        self._run(self._beside(*held, [], end))

    @rule(held=HELD, other=STEP, end=END)
    def beside(self, held: tuple[Step, int], other: Step, end: End) -> None:
        """Stop one step after a statement, while another continues as far as it can."""
        self._run(self._beside(*held, [other], end))

    @rule(
        build=st.sampled_from([Merge(), Index()]),
        at=st.integers(1, Merge.length) | st.integers(15, Merge.length),
        others=st.lists(REMOVAL | WRITE | SEARCH, min_size=1, max_size=2),
        end=st.just("goes on") | END,
    )
    def beside_a_build(self, build: Step, at: int, others: list[Step], end: End) -> None:
        """Stop a merge or the build of an index after a statement; leave a segment to index, if it is one."""
        if isinstance(build, Index):
            self._run(self._alone(Roll()))
        self._run(self._beside(build, at, others, end))

    @rule(
        text=NUMBER,
        write=WRITE,
        again=st.booleans(),
        steps=st.lists(MOVE | STEP, min_size=1, max_size=3),
        end=st.just("goes on") | END,
    )
    def behind(self, text: int, write: Write, again: bool, steps: list[Step], end: End) -> None:
        """Let a writer wait for a locked text, while segments merge and others come, or wait too.

        `again`: the first of the others writes the same as the waiting writer.
        """
        live = sorted(_live(self.predictions))
        if live:
            held = live[text % len(live)]
            late = Write((*write.batch, (0, (held,))))
            self._run(self._behind(held, late, [write, *steps] if again else steps, end))

    async def _alone(self, step: Step) -> None:
        run = Run(self, step)
        await run.end()
        await self._settle([run])

    async def _beside(self, first: Step, at: int, more: list[Step], end: End) -> None:
        one, others = Run(self, first, at=at), []
        await one.wait_until_blocked()
        for step in more:
            others.append(Run(self, step))
            await others[-1].wait_until_blocked()
        await one.end(end)
        for run in others:
            await run.end()
        await self._settle([one, *others])

    async def _behind(self, text: int, write: Write, steps: list[Step], end: End) -> None:
        await self._holder.execute("SELECT FROM text_inputs WHERE id = %s FOR UPDATE", (TEXTS[text].id,))
        late = Run(self, write)
        await late.wait_until_blocked()
        others = []
        for step in steps:
            others.append(Run(self, step))
            await others[-1].wait_until_blocked()
        if end != "goes on":
            await late.end(end)
            await self._holder.rollback()
        else:
            await self._holder.rollback()
            await late.end()
        for run in others:
            await run.end()
        await self._settle([late, *others])

    async def _settle(self, runs: list[Run]) -> None:
        """Check that the stored rows follow from the earlier ones and the runs' results; expect them from now on."""
        before, after = self.predictions, await self._stored(runs)
        results = {each: what for run in runs for each, what in run.made.items()}
        assert after.keys() <= before.keys() | results.keys()
        for each, what in before.items():
            state = _state(after, each)
            about = [run for run in runs if what is not None and run.step.about(what)]
            allowed: set[State | None] = {run.step.leaves for run in about}
            if what is None:
                allowed = {"erased"}
            elif not any(run.ended for run in about):
                allowed.add("live")
            assert state in allowed, (each, what, state, allowed)
        for run in runs:
            states = {_state(after, each) for each, what in run.made.items() if not _disputed(what, runs)}
            assert len(states) <= 1, "a batch is stored as a whole or not at all"
            if run.ended:
                assert states <= {"live"}
        self.predictions = after
        # Stored all the time, or at some time.
        steady = _live({each: what for each, what in before.items() if after.get(each) is not None})
        seen = _live(before) | _live(dict(results))
        for run in runs:
            if run.found is not None:
                assert isinstance(run.step, Search)
                self._judge(run.step, run.found, steady=steady, seen=seen)

    async def _stored(self, runs: list[Run]) -> dict[UUID, Made | None]:
        known = {each: what for run in runs for each, what in run.made.items()} | self.predictions
        rows = await (await self.watcher.execute("SELECT id, text_id FROM predictions")).fetchall()
        results: dict[UUID, Made | None] = {}
        for each, text in rows:
            what = known[each]
            results[each] = None if text == NIL_ID else what
            assert text == NIL_ID or (what is not None and TEXTS[what.text].id == text)
        return results

    @invariant()
    def shows_each_live_text_once(self) -> None:
        self._run(self._shows())

    async def _shows(self) -> None:
        live = _live(self.predictions)
        for exact in (True, False):
            step = Search(0, max(1, len(live)), exact)
            run = Run(self, step)
            await run.end()
            assert run.found is not None
            assert run.found.complete or len(run.found.results) == step.k
            self._judge(step, run.found, steady=live, seen=live)
        for user, whose in enumerate(self.users):
            his = {what.text for what in self.predictions.values() if what is not None and what.user == user}
            filters = SimilarityFilters(user_id=whose)
            neighbours = await self.similarity.search(VECTORS[0], k=len(TEXTS), filters=filters)
            assert sorted(NUMBERS[each.text_id] for each in neighbours.results) == sorted(his)
        vectors = await VectorRepository(self.database, space=SPACE).of_texts([text.id for text in TEXTS])
        for text_id, vector in vectors.items():
            np.testing.assert_array_equal(vector, KEPT[NUMBERS[text_id]])
        await self._lie(set(vectors))

    async def _lie(self, with_vector: set[UUID]) -> None:
        """Check the vectors' places: one a text in searched segments; none of an erased text anywhere."""
        rows = await (
            await self.watcher.execute("SELECT id FROM text_inputs WHERE id <> %s ORDER BY id", (NIL_ID,))
        ).fetchall()
        texts = [row[0] for row in rows]
        assert {TEXTS[number].id for number in _live(self.predictions)} <= set(texts)
        assert with_vector == set(texts)
        rows = await (
            await self.watcher.execute(
                "SELECT text_id, state = 'retired' FROM embeddings e LEFT JOIN segments s ON s.id = e.segment"
            )
        ).fetchall()
        assert {row[0] for row in rows} == set(texts)
        assert sorted(text for text, retired in rows if not retired) == texts
        rows = await (
            await self.watcher.execute(
                "SELECT count(*) FILTER (WHERE state = 'open'), "
                "array_agg(format('embeddings_%s', id) ORDER BY id) FILTER (WHERE state <> 'merging'), "
                "(SELECT array_agg(relname::text ORDER BY relname::text) FROM pg_class "
                "WHERE relname ~ '^embeddings_[0-9]+$' AND relkind = 'r') FROM segments"
            )
        ).fetchall()
        opened_ones, segments, tables = rows[0]
        assert opened_ones == 1
        assert sorted(segments) == tables

    def _judge(self, step: Search, found: Neighbours, *, steady: set[int], seen: set[int]) -> None:
        """Check a search: `steady` texts were stored all the time, `seen` ones at some time."""
        numbers = [NUMBERS[each.text_id] for each in found.results]
        assert len(set(numbers)) == len(numbers) <= step.k
        assert set(numbers) <= seen
        cosines = KEPT @ KEPT[step.text]
        assert [each.similarity for each in found.results] == pytest.approx(cosines[numbers], abs=2e-3)
        if found.complete:
            assert len(numbers) >= min(step.k, len(steady)), "short of k while more fit"
        if found.exact and numbers:
            missed = steady - set(numbers)
            assert all(cosines[number] <= cosines[numbers].min() + 2e-3 for number in missed)


def _live(predictions: dict[UUID, Made | None]) -> set[int]:
    return {what.text for what in predictions.values() if what is not None}


def _state(predictions: dict[UUID, Made | None], each: UUID) -> State:
    if each not in predictions:
        return "absent"
    return "erased" if predictions[each] is None else "live"


def _disputed(made: Made, runs: list[Run]) -> bool:
    """Return whether another step was about the same text while this one wrote."""
    return any(run.step.about(made) for run in runs)


def test_any_interleaving_shows_each_live_text_once(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small indexes are used, erasures take several steps, and the nearest scanned rows may not be enough.
    monkeypatch.setattr("db.search.similarity._STEP", 0.0)
    monkeypatch.setattr("db.search.similarity._REACH", 1)
    monkeypatch.setattr("db.search.similarity._LEAST_REACH", 3)
    monkeypatch.setattr("db.privacy.erasure._STEP_ROWS", 3)
    size = (
        {}
        if settings.get_current_profile_name() == "long"
        else {"max_examples": breadth.examples(25), "stateful_step_count": 15}
    )
    run_state_machine_as_test(
        lambda: Interleavings(server),
        settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **size),
    )
