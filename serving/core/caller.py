"""The caller of a request, its role, and the repetition of a request. Never checks a credential."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from db.predictions.submissions import NewIdempotency


class Role(StrEnum):
    """The rights of a key; each role includes the ones before it."""

    CLIENT = "client"
    ENGINEER = "engineer"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Return whether this role has the rights of `other`."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """A checked key, the holder that its predictions belong to, and its role."""

    key_id: UUID
    holder_id: UUID
    role: Role
    rate_limit: float | None = None

    @property
    def scope(self) -> UUID | None:
        """The holder whose data this caller may see; None for the data of all."""
        return self.holder_id if self.role is Role.CLIENT else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Idempotency:
    """A request that may be sent twice: its key, its route and a digest of its body."""

    key: str
    route: str
    body_digest: bytes

    def to_row(self, caller: Caller, *, status: int, answer: bytes) -> NewIdempotency:
        """Return the row that gives a repetition the same answer."""
        return NewIdempotency(
            holder_id=caller.holder_id,
            route=self.route,
            key=self.key,
            body_digest=self.body_digest,
            status=status,
            answer=answer,
        )
