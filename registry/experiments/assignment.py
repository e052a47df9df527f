"""The assignment of units to arms by a hash alone, without a store or a random number.

Every process that knows an experiment's salt computes the same arm, so assignment is sticky.
"""

from functools import lru_cache
from hashlib import blake2b

_BITS = 53
_BUCKETS: int = 2**_BITS


def bucket(salt: str, unit: str) -> float:
    """Return a unit's position in [0, 1): uniform over units, and independent between salts.

    Uses keyed BLAKE2b (RFC 7693), 8 bytes, cut to the 53 bits that a float holds exactly.
    """
    digest = blake2b(unit.encode(), digest_size=8, key=_key(salt)).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / _BUCKETS


def in_challenger(salt: str, unit: str, share: float) -> bool:
    """Return whether a unit belongs to the challenger, whose share of the units is in [0, 1].

    A higher share keeps all of the challenger's units and adds only as many as it needs; a lower share removes only
    as many as it must.
    """
    return bucket(salt, unit) < share


@lru_cache(maxsize=256)
def _key(salt: str) -> bytes:
    # BLAKE2b takes keys of at most 64 bytes, but a salt may be longer.
    return blake2b(salt.encode(), digest_size=32).digest()
