"""Rate limits: how many texts a key may send, by a token bucket a key.

Each ingress replica counts for itself. Never knows what a text is spent on.
"""

import time
from collections.abc import Callable
from uuid import UUID

from serving.core.caller import Caller
from serving.errors import RateLimited


class RateLimiter:
    """A key gets its rate in texts a second, a second's worth at once; 0 means no limit.

    A request larger than a second's worth passes when the bucket is full and leaves it in debt, so that no
    request that the platform takes at all is refused for ever.
    """

    def __init__(self, default_rate: float = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._default_rate = default_rate
        self._clock = clock
        self._buckets: dict[UUID, tuple[float, float]] = {}

    def take(self, caller: Caller, texts: int) -> None:
        """Spend the caller's share.

        Raises:
            RateLimited: it is used up; `retry_after` says when this request will pass.
        """
        rate = self._default_rate if caller.rate_limit is None else caller.rate_limit
        if rate <= 0:
            return
        size = max(1.0, rate)
        now = self._clock()
        level, since = self._buckets.get(caller.key_id, (size, now))
        level = min(size, level + (now - since) * rate)
        needed = min(float(texts), size)
        if level < needed:
            self._buckets[caller.key_id] = (level, now)
            raise RateLimited(
                f"this key may send {rate:g} texts a second: wait, then send again",
                retry_after=(needed - level) / rate,
            )
        self._buckets[caller.key_id] = (level - texts, now)
