"""Rate limits: the texts a key may send, by one token bucket for each key.

Each ingress replica counts for itself. Never knows what the texts are used for.
"""

import time
from collections.abc import Callable
from uuid import UUID

from serving.core.caller import Caller
from serving.errors import RateLimited


class RateLimiter:
    """Limits each key to its rate in texts a second; 0 means no limit.

    A second's worth may come at once. A larger request passes when the bucket is full and leaves it in debt, so that
    every valid request passes sooner or later.
    """

    def __init__(self, default_rate: float = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._default_rate = default_rate
        self._clock = clock
        self._buckets: dict[UUID, tuple[float, float]] = {}

    def take(self, caller: Caller, texts: int) -> None:
        """Take texts from the caller's bucket.

        Raises:
            RateLimited: the bucket holds too few; `retry_after` says when this request will pass.
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
