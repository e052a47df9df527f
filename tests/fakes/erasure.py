"""A fake of erasure."""

from dataclasses import replace
from uuid import UUID, uuid4

from db.errors import NotFound
from db.privacy.erasure import NEAR_COSINE, ErasedCounts, ErasureKind, ErasureReceipt, NearCopies
from tests.fakes.search import FakeSimilarityRepository
from tests.fakes.store import FakeStore

_NEAR_EACH = 100


class FakeErasureRepository:
    """Removes from a fake store the rows that the database makes anonymous."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def erase_user(self, user_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase a user's predictions, judgements and stored answers."""
        self._store.reach()
        if user_id not in self._store.users:
            raise NotFound(f"there is no user {user_id}")
        erased = {
            row.id
            for row in self._store.predictions.values()
            if row.user_id == user_id or (row.user_id is None and row.holder_id == user_id)
        }
        return await self._erase(ErasureKind.USER, user_id, erased, actor)

    async def erase_text(self, text_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase a text with all its predictions."""
        self._store.reach()
        erased_before = any(
            entry.action == "text.erase" and entry.subject == str(text_id) for entry in self._store.audit
        )
        if text_id not in self._store.texts and not erased_before:
            raise NotFound(f"there is no text {text_id}")
        erased = {row.id for row in self._store.predictions.values() if row.text_id == text_id}
        return await self._erase(ErasureKind.TEXT, text_id, erased, actor)

    async def _erase(
        self, kind: ErasureKind, subject: UUID, erased: set[UUID], actor: UUID | None
    ) -> ErasureReceipt:
        store = self._store
        rows = [store.predictions.pop(prediction_id) for prediction_id in erased]
        judgements = [store.feedback.pop(name) for name in list(store.feedback) if name[0] in erased]
        holders = {row.holder_id for row in rows} | {each.holder_id for each in judgements}
        answers = {
            name for name, stored in store.answers.items() if name[0] in holders and stored.names & erased
        }
        if kind is ErasureKind.USER:
            for name in [name for name in store.feedback if name[1] == subject]:
                judgements.append(store.feedback.pop(name))
                holder = uuid4()
                store.feedback[name[0], holder] = replace(judgements[-1], holder_id=holder, comment=None)
            answers |= {name for name in store.answers if name[0] == subject}
        for name in answers:
            del store.answers[name]
        texts = {row.text_id for row in rows}
        shared = sorted(texts & {row.text_id for row in store.predictions.values()})
        gone = texts - set(shared)
        vectors = [store.vector(text_id) for text_id in gone]
        for text_id in gone:
            del store.texts[text_id]
        counts = ErasedCounts(
            predictions=len(rows),
            texts=len(gone),
            embeddings=len(gone),
            feedback=len(judgements),
            comments=sum(each.comment is not None for each in judgements),
            idempotency=len(answers),
        )
        store.append(actor, f"{kind}.erase", str(subject), counts.as_dict())
        similarity = FakeSimilarityRepository(store)
        searches = [
            (await similarity.search(vector, k=_NEAR_EACH, min_similarity=NEAR_COSINE)).results
            for vector in vectors
        ]
        return ErasureReceipt(
            kind=kind,
            subject=subject,
            erased=counts,
            shared=len(shared),
            shared_text_ids=tuple(shared),
            near_copies=NearCopies(
                cosine=NEAR_COSINE,
                text_ids=tuple(sorted({near.text_id for results in searches for near in results})),
                complete=all(len(results) < _NEAR_EACH for results in searches),
            ),
        )
