"""The proof: acknowledged predictions are stored as they were answered, and equal the undamaged platform's.

Reads rows by SQL, because a fault may be in what serves them, and references by HTTP.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import httpx
import psycopg

from db.embedded.server import EmbeddedPostgres
from serving.core.connections import DATABASE
from tests.support.faults.clients import answer_in
from tests.support.faults.ledger import Answer
from tests.support.faults.texts import texts
from tests.support.live import LivePlatform

TOLERANCE = 1e-5
"""Most that a probability may differ: its last digits, because batch-mates change no answer."""

_AT_ONCE = 250
_CANARIES = 50
_PATIENCE_SECONDS = 90.0
_ROWS = """
    SELECT p.id::text, t.content, p.model, p.version, p.label, p.scores
    FROM predictions p JOIN text_inputs t ON t.id = p.text_id
    WHERE p.id = ANY(%s::uuid[]) AND EXISTS (SELECT FROM embeddings e WHERE e.text_id = t.id)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Wrong acknowledged predictions, by id and reason, and those that are not stored."""

    wrong: dict[str, str]
    lost: list[str]


class Canaries:
    """Texts predicted before the damage, so that a later reference can be trusted."""

    def __init__(self, platform: LivePlatform) -> None:
        self._platform = platform
        self._before = list(reference(platform, None, list(islice(texts(0), _CANARIES))))

    def verdict(self, answers: Sequence[Answer]) -> Verdict:
        """Return what is wrong or lost of these, and of the canaries."""
        stored = rows(self._platform, [answer.id for answer in answers])
        lost = [answer.id for answer in answers if answer.id not in stored]
        wrong = {
            answer.id: f"stored otherwise: {stored[answer.id]}"
            for answer in answers
            if answer.id in stored and not same(stored[answer.id], answer, TOLERANCE)
        }
        for version, given in _by_version([*self._before, *answers]).items():
            truths = reference(self._platform, version, [answer.text for answer in given])
            for answer, truth in zip(given, truths, strict=True):
                if not same(truth, answer, TOLERANCE):
                    wrong.setdefault(
                        answer.id, f"{answer.label} {answer.scores}, unhurt {truth.label} {truth.scores}"
                    )
        return Verdict(wrong=wrong, lost=lost)


def same(truth: Answer, answer: Answer, tolerance: float) -> bool:
    """Return whether both answers about a text agree; labels may differ where two scores are nearly equal."""
    if (truth.text, truth.model, truth.version) != (answer.text, answer.model, answer.version):
        return False
    if any(abs(truth.scores[label] - score) > tolerance for label, score in answer.scores.items()):
        return False
    return abs(truth.scores[answer.label] - truth.scores[truth.label]) <= tolerance


def reference(platform: LivePlatform, version: str | None, wanted: Sequence[str]) -> Iterator[Answer]:
    """Return the platform's answers about these texts in large batches, by this version."""
    with platform.client() as client:
        for start in range(0, len(wanted), _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            body = {"texts": batch} | ({"version": version} if version else {})
            made = _asked(client, body)["predictions"]
            yield from (answer_in(each, text) for each, text in zip(made, batch, strict=True))


def rows(platform: LivePlatform, ids: Sequence[str]) -> dict[str, Answer]:
    """Return the rows of these ids, with text and vector."""
    with psycopg.connect(database(platform)) as connection:
        found = connection.execute(_ROWS, (list(ids),)).fetchall()
    return {
        id_: Answer(id=id_, text=text, model=model, version=version, label=label, scores=scores)
        for id_, text, model, version, label, scores in found
    }


def database(platform: LivePlatform, name: str = DATABASE) -> str:
    """Return the URL of the platform's database, or of another one of its server."""
    return platform.settings.get("DATABASE_URL") or EmbeddedPostgres(platform.home).url(name)


def _asked(client: httpx.Client, body: dict[str, object]) -> dict[str, list[dict[str, object]]]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            answer = client.post("/v1/predict/batch", json=body)
        except httpx.HTTPError as error:
            said = type(error).__name__
        else:
            if answer.status_code == httpx.codes.CREATED:
                found: dict[str, list[dict[str, object]]] = answer.json()
                return found
            said = f"{answer.status_code} {answer.text}"
        if time.monotonic() > deadline:
            raise RuntimeError(f"no reference: {said}")
        time.sleep(0.5)


def _by_version(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.version].append(answer)
    return found
