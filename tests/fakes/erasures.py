"""An in-memory stand-in for erasure, over the fake store. Keeps nothing after the process ends."""

from dataclasses import replace
from uuid import UUID

from db.errors import NotFound
from db.privacy.erasure import NEAR_COSINE, ErasedCounts, ErasureKind, ErasureReceipt, NearCopies
from tests.fakes.data import FakeStore


class FakeErasureRepository:
    """Removes rows where the database unlinks them: whoever reads the store sees the same."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._erased: set[UUID] = set()

    async def erase_user(self, user_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """What is a user's."""
        self._store.reach()
        if user_id not in self._store.users:
            raise NotFound(f"there is no user {user_id}")
        theirs = {
            row.id
            for row in self._store.predictions.values()
            if row.user_id == user_id or (row.user_id is None and row.holder_id == user_id)
        }
        return self._erase(ErasureKind.USER, user_id, theirs, actor)

    async def erase_text(self, text_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """A text."""
        self._store.reach()
        if text_id not in self._store.texts and text_id not in self._erased:
            raise NotFound(f"there is no text {text_id}")
        self._erased.add(text_id)
        doomed = {row.id for row in self._store.predictions.values() if row.text_id == text_id}
        return self._erase(ErasureKind.TEXT, text_id, doomed, actor)

    def _erase(
        self, kind: ErasureKind, subject: UUID, doomed: set[UUID], actor: UUID | None
    ) -> ErasureReceipt:
        store = self._store
        texts = {store.predictions.pop(identity).text_id for identity in doomed}
        shared = texts & {row.text_id for row in store.predictions.values()}
        for text_id in texts - shared:
            del store.texts[text_id]
        judged = [name for name in store.feedback if name[0] in doomed]
        comments = sum(store.feedback.pop(name).comment is not None for name in judged)
        answers = [
            name
            for name, kept in store.answers.items()
            if any(str(identity).encode() in kept.answer for identity in doomed)
        ]
        for answer in answers:
            del store.answers[answer]
        store.acts.append((actor, f"{kind}.erase"))
        gone = len(texts - shared)
        counts = replace(
            ErasedCounts(), predictions=len(doomed), texts=gone, embeddings=gone, feedback=len(judged)
        )
        return ErasureReceipt(
            kind=kind,
            subject=subject,
            erased=replace(counts, comments=comments, idempotency=len(answers)),
            shared=len(shared),
            shared_text_ids=tuple(sorted(shared)),
            near_copies=NearCopies(cosine=NEAR_COSINE, text_ids=(), complete=True),
        )
