"""Which arm a unit belongs to: a hash, and nothing else. Never remembers a unit, reads a table or draws a number.

Every process that knows an experiment's salt gives the same answer, so that assignment is sticky without a store.
"""

from functools import lru_cache
from hashlib import blake2b

_BITS = 53
_BUCKETS: int = 2**_BITS


def bucket(salt: str, unit: str) -> float:
    """Where a unit lies in [0, 1): uniform over units, and independent between salts.

    Keyed BLAKE2b (RFC 7693), 8 bytes, cut to the 53 bits that a float holds exactly.
    """
    digest = blake2b(unit.encode(), digest_size=8, key=_key(salt)).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / _BUCKETS


def in_challenger(salt: str, unit: str, share: float) -> bool:
    """Whether a unit is answered by the challenger, whose share of the units is in [0, 1].

    A higher share keeps every unit that the challenger has and moves only those that it must; a lower one
    gives back only those that it must.
    """
    return bucket(salt, unit) < share


@lru_cache(maxsize=256)
def _key(salt: str) -> bytes:
    # BLAKE2b takes keys of at most 64 bytes; a salt may be longer.
    return blake2b(salt.encode(), digest_size=32).digest()
