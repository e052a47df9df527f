"""Erasure: fakes and PostgreSQL alike."""

from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from db.accounts.audit import AuditFilters
from db.accounts.keys import Key
from db.errors import NotFound
from db.predictions.feedback import NewFeedback
from db.predictions.predictions import PredictionFilters
from db.predictions.submissions import Dropped, NewIdempotency, NewPrediction, NewText, Stored, Submission
from db.privacy.erasure import ErasedCounts, ErasureReceipt, NearCopies
from db.schema.tables import NIL_ID
from tests.fakes.inference import vector_of
from tests.support.repositories import Repositories
from tests.support.row_factories import add_key, new_idempotency, new_prediction, new_text

pytestmark = pytest.mark.anyio


async def predict(
    repositories: Repositories, key: Key, text: NewText, *, once: NewIdempotency | None = None, **values: Any
) -> NewPrediction:
    row = new_prediction(key, text, **values)
    await repositories.writer.commit([Submission(texts=[text], predictions=[row], idempotency=once)])
    return row


async def judge(
    repositories: Repositories, row: NewPrediction, key: Key, comment: str | None, **more: Any
) -> None:
    feedback = NewFeedback(
        prediction_id=row.id, holder_id=key.holder_id, key_id=key.id, is_correct=True, comment=comment
    )
    await repositories.feedback.put(feedback, **more)


def near(*text_ids: UUID) -> NearCopies:
    return NearCopies(cosine=0.95, text_ids=tuple(sorted(text_ids)), complete=True)


async def answers(repositories: Repositories, *keys: Key) -> list[str]:
    """Return the idempotency keys "a" to "d" whose answers are stored."""
    return [
        f"{key.name} {name}"
        for key in keys
        for name in "abcd"
        if await repositories.idempotency.find(key.holder_id, "/v1/predict", name) is not None
    ]


async def test_a_user_is_erased_and_what_others_sent_stays(repositories: Repositories) -> None:
    user = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    bob = await repositories.users.create(username="bob", email="bob@example.org", actor=None)
    own, other = await add_key(repositories.keys, owner_id=user.id), await add_key(repositories.keys)
    actor = other.id
    secret, shared, near_by = new_text("secret"), new_text("shared"), new_text("others")
    copy = new_text("a copy", np.frombuffer(secret.embedding, "<f2").astype(np.float32))
    erased = [
        await predict(repositories, own, secret, once=new_idempotency(own, "a")),
        await predict(repositories, other, shared, user_id=user.id, once=new_idempotency(other, "b")),
    ]
    kept = [
        await predict(repositories, own, copy, user_id=bob.id, once=new_idempotency(own, "c")),
        await predict(repositories, other, shared, once=new_idempotency(other, "d")),
        await predict(repositories, other, near_by),
    ]
    await judge(repositories, erased[0], other, "a comment")
    await judge(repositories, erased[0], own, None)
    await judge(repositories, kept[1], own, "mine")
    await judge(repositories, kept[1], other, "theirs")
    receipt = await repositories.erasure.erase_user(user.id, actor=actor)
    counts = ErasedCounts(predictions=2, texts=1, embeddings=1, feedback=3, comments=2, idempotency=3)
    assert receipt == ErasureReceipt(
        kind=receipt.kind,
        subject=user.id,
        erased=counts,
        shared=1,
        shared_text_ids=(shared.id,),
        near_copies=near(copy.id),
    )
    assert str(receipt.kind) == "user"
    for row in erased:
        with pytest.raises(NotFound):
            await repositories.predictions.get(row.id)
        with pytest.raises(NotFound):
            await judge(repositories, row, other, None)
    assert [each.id for each in (await repositories.predictions.list()).items] == [
        row.id for row in reversed(kept)
    ]
    filters = PredictionFilters(user_id=user.id)
    assert (await repositories.predictions.list(filters)).items == ()
    assert await answers(repositories, own, other) == ["test d"]
    feedback = (await repositories.predictions.get(kept[1].id)).feedback
    assert sorted((each.is_correct, each.comment or "") for each in feedback) == [
        (True, ""),
        (True, "theirs"),
    ]
    assert user.id not in {each.holder_id for each in feedback}
    assert (await repositories.vectors.of_texts([secret.id, shared.id, copy.id])).keys() == {
        shared.id,
        copy.id,
    }
    found = await repositories.similarity.search(vector_of("secret"), k=10)
    assert {each.text_id for each in found.results} == {shared.id, copy.id, near_by.id}
    assert (await repositories.keywords.search("secret", limit=9)).text_ids == ()
    again = await repositories.erasure.erase_user(user.id, actor=None)
    assert (again.erased, again.shared, again.near_copies) == (ErasedCounts(), 0, near())
    entries = (await repositories.audit.list(AuditFilters(action="user.erase"))).items
    assert [(each.subject, each.actor, each.detail) for each in entries] == [
        (str(user.id), None, ErasedCounts().as_dict()),
        (str(user.id), actor, counts.as_dict()),
    ]


async def test_a_text_is_erased_whoever_sent_it(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    text, kept = new_text("secret"), new_text("kept")
    rows = [
        await predict(repositories, key, text, once=new_idempotency(key, "a")),
        await predict(repositories, other, text, arm="shadow", once=new_idempotency(other, "b")),
    ]
    stays = await predict(repositories, key, kept, once=new_idempotency(key, "c"))
    await judge(repositories, rows[0], key, "a comment")
    await judge(repositories, rows[0], other, None, idempotency=new_idempotency(other, "d"))
    receipt = await repositories.erasure.erase_text(text.id, actor=key.id)
    counts = ErasedCounts(predictions=2, texts=1, embeddings=1, feedback=2, comments=1, idempotency=3)
    assert receipt == ErasureReceipt(
        kind=receipt.kind, subject=text.id, erased=counts, shared=0, shared_text_ids=(), near_copies=near()
    )
    assert str(receipt.kind) == "text"
    assert [each.id for each in (await repositories.predictions.list()).items] == [stays.id]
    assert await answers(repositories, key, other) == ["test c"]
    assert (await repositories.vectors.of_texts([text.id, kept.id])).keys() == {kept.id}
    assert await repositories.labels.of_texts([text.id], model="sentiment") == {}
    ids = [row.id for row in rows]
    assert await repositories.vectors.texts_of(ids, holder=key.id) == {}
    entries = (await repositories.audit.list(AuditFilters(action="text.erase"))).items
    assert [(each.subject, each.actor, each.detail) for each in entries] == [
        (str(text.id), key.id, counts.as_dict())
    ]


async def test_only_what_was_there_can_be_erased_again(repositories: Repositories) -> None:
    key, text = await add_key(repositories.keys), new_text("secret")
    for unknown in (uuid4(), NIL_ID):
        with pytest.raises(NotFound):
            await repositories.erasure.erase_user(unknown, actor=None)
        with pytest.raises(NotFound):
            await repositories.erasure.erase_text(unknown, actor=None)
    await predict(repositories, key, text)
    await repositories.erasure.erase_text(text.id, actor=None)
    again = await repositories.erasure.erase_text(text.id, actor=None)
    assert (again.erased, again.near_copies) == (ErasedCounts(), near())
    row = await predict(repositories, key, text)
    assert (await repositories.predictions.get(row.id)).text == "secret"
    assert (await repositories.erasure.erase_text(text.id, actor=None)).erased.predictions == 1


async def test_a_text_that_is_gone_is_not_shared(repositories: Repositories) -> None:
    key, text = await add_key(repositories.keys), new_text("secret")
    await predict(repositories, key, text)
    await repositories.erasure.erase_text(text.id, actor=None)
    again = await repositories.erasure.erase_text(text.id, actor=None)
    assert (again.shared, again.shared_text_ids) == (0, ())


async def test_an_erased_prediction_has_no_text(repositories: Repositories) -> None:
    key, text = await add_key(repositories.keys), new_text("secret")
    row = await predict(repositories, key, text)
    await repositories.erasure.erase_text(text.id, actor=None)
    assert await repositories.vectors.texts_of([row.id]) == {}


@pytest.mark.parametrize("erase", ["user", "text", "nothing"])
async def test_what_stands_beside_an_erased_prediction_is_not_stored(
    repositories: Repositories, erase: str
) -> None:
    """A shadow is stored after the answer: an erasure in between must not be undone by it."""
    user = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    key = await add_key(repositories.keys)
    texts = [new_text("mine"), new_text("shared with others")]
    rows = [new_prediction(key, text, user_id=user.id) for text in texts]
    await repositories.writer.commit([Submission(texts=texts, predictions=rows)])
    others = await predict(repositories, key, texts[1])
    shadows = [new_prediction(key, text, user_id=user.id, arm="shadow") for text in texts]
    late = Submission(texts=texts, predictions=shadows, beside=[row.id for row in rows])
    alone = Submission(
        texts=texts[1:], predictions=[new_prediction(key, texts[1], arm="shadow")], beside=[others.id]
    )
    if erase == "user":
        await repositories.erasure.erase_user(user.id, actor=None)
    if erase == "text":
        await repositories.erasure.erase_text(texts[0].id, actor=None)
    gone = erase != "nothing"
    assert await repositories.writer.commit([late, alone]) == [Dropped() if gone else Stored(), Stored()]
    page = await repositories.predictions.list(PredictionFilters(arm="shadow"))
    assert {each.id for each in page.items} == {
        each.id for sent in ([alone] if gone else [late, alone]) for each in sent.predictions
    }
    if gone:
        with pytest.raises(NotFound):
            await repositories.predictions.get(shadows[0].id)
