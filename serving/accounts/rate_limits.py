"""Rate limits: of a key, by the texts it has computed and by its reads; of an address, by its wrong credentials.

Each ingress replica counts for itself. Never knows what the texts are used for.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

from serving.core.caller import Caller
from serving.errors import RateLimited

# A read or a judgement costs a tenth of a text; a key with any rate has one a second, and ten at once.
_READS_PER_TEXT: Final = 10
_LEAST_READS: Final = 1.0
_READS_AT_ONCE: Final = 10
_REFUSALS_A_SECOND: Final = 1.0
_REFUSALS_AT_ONCE: Final = 60
_MAX_ADDRESSES: Final = 10_000


class _Buckets:
    """Token buckets by name, each with what it holds and when that was."""

    def __init__(self, clock: Callable[[], float], most: int | None = None) -> None:
        self._clock = clock
        self._most = most
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait_for(self, name: Hashable, amount: float, rate: float, size: float) -> float:
        """Return the seconds until a bucket holds this amount, or is full; 0 if it does now."""
        return max(0.0, min(amount, size) - self._level(name, rate, size)) / rate

    def take(self, name: Hashable, amount: float, rate: float, size: float) -> None:
        """Take from a bucket, which may leave it in debt."""
        self._levels[name] = self._level(name, rate, size) - amount, self._clock()
        self._levels.move_to_end(name)
        if self._most is not None and len(self._levels) > self._most:
            self._levels.popitem(last=False)

    def _level(self, name: Hashable, rate: float, size: float) -> float:
        now = self._clock()
        level, since = self._levels.get(name, (size, now))
        return min(size, level + (now - since) * rate)


class RateLimiter:
    """Limits each key to its rate in texts a second; 0 means no limit.

    A second's worth may come at once, and a larger request leaves the bucket in debt, so that every valid request
    passes sooner or later. Reads and judgements have a bucket of their own.
    """

    def __init__(self, default_rate: float = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._default_rate = default_rate
        self._texts = _Buckets(clock)
        self._reads = _Buckets(clock)

    def take(self, caller: Caller, texts: int) -> None:
        """Take the work of texts from the caller's bucket.

        Raises:
            RateLimited: the bucket holds too few; `retry_after` says when this request will pass.
        """
        rate = self._rate_of(caller)
        self._charge(self._texts, caller, texts, rate, max(1.0, rate), "texts")

    def take_reads(self, caller: Caller, reads: int) -> None:
        """Take reads or judgements from the caller's other bucket.

        Raises:
            RateLimited: as in `take`.
        """
        rate = self._rate_of(caller)
        if rate > 0:
            rate = max(_LEAST_READS, _READS_PER_TEXT * rate)
        self._charge(self._reads, caller, reads, rate, max(_READS_AT_ONCE, rate), "such requests")

    @staticmethod
    def _charge(
        buckets: _Buckets, caller: Caller, amount: float, rate: float, size: float, what: str
    ) -> None:
        if rate <= 0:
            return
        if wait := buckets.wait_for(caller.key_id, amount, rate, size):
            raise RateLimited(
                f"this key may send {rate:g} {what} a second: wait, then send again", retry_after=wait
            )
        buckets.take(caller.key_id, amount, rate, size)

    def _rate_of(self, caller: Caller) -> float:
        return self._default_rate if caller.rate_limit is None else caller.rate_limit


class RefusalLimiter:
    """Limits the wrong credentials of an address: each may cost a look-up.

    An address here is one of IPv4, or a network of 64 bits of IPv6.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._refusals = _Buckets(clock, _MAX_ADDRESSES)

    def require_room(self, address: str) -> None:
        """Raise RateLimited if too many wrong credentials came from there."""
        wait = self._refusals.wait_for(_network(address), 1, _REFUSALS_A_SECOND, _REFUSALS_AT_ONCE)
        if wait:
            raise RateLimited(
                "too many wrong credentials came from this address: wait, then send a right one",
                retry_after=wait,
            )

    def count(self, address: str) -> None:
        """Count one more."""
        self._refusals.take(_network(address), 1, _REFUSALS_A_SECOND, _REFUSALS_AT_ONCE)


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(IPv6Network((parsed, 64), strict=False))
    return str(parsed)
