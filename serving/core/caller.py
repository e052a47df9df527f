"""Who asks, what they may do, and which request of theirs may be repeated. Never checks a credential."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from db.predictions.submissions import NewIdempotency


class Role(StrEnum):
    """What a key may do; each role includes the ones before it."""

    CLIENT = "client"
    ENGINEER = "engineer"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: a checked key, whom its predictions belong to, and what it may do."""

    key_id: UUID
    holder_id: UUID
    role: Role
    rate_limit: float | None = None

    @property
    def scope(self) -> UUID | None:
        """The holder whose data this caller may see; None: everybody's."""
        return self.holder_id if self.role is Role.CLIENT else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Idempotency:
    """A request that may be sent twice: its key, its route and a digest of its body."""

    key: str
    route: str
    body_digest: bytes

    def kept(self, caller: Caller, *, status: int, answer: bytes) -> NewIdempotency:
        """The row that makes a repetition get this answer."""
        return NewIdempotency(
            holder_id=caller.holder_id,
            route=self.route,
            key=self.key,
            body_digest=self.body_digest,
            status=status,
            answer=answer,
        )
