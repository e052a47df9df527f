"""Rate limits: by work, by reads, and by the wrong credentials of an address."""

import pytest

from serving.accounts.authentication import generate_key
from serving.accounts.rate_limits import RateLimiter, RefusalLimiter
from serving.core.caller import Caller, Role
from serving.errors import RateLimited


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _caller(rate: float | None = None) -> Caller:
    key = generate_key()
    return Caller(key_id=key.id, holder_id=key.id, role=Role.CLIENT, rate_limit=rate)


def test_reads_have_a_bucket_of_their_own() -> None:
    clock, caller = Clock(), _caller(2)
    limits = RateLimiter(clock=clock)
    limits.take(caller, 2)
    for _ in range(20):
        limits.take_reads(caller, 1)
    with pytest.raises(RateLimited, match="20 such requests a second"):
        limits.take_reads(caller, 1)
    clock.now += 1
    limits.take(caller, 2)
    limits.take_reads(caller, 20)


def test_the_smallest_key_reads_ten_at_once_and_one_a_second() -> None:
    clock, caller = Clock(), _caller(0.001)
    limits = RateLimiter(clock=clock)
    for _ in range(10):
        limits.take_reads(caller, 1)
    with pytest.raises(RateLimited) as refused:
        limits.take_reads(caller, 1)
    assert refused.value.retry_after == pytest.approx(1)


def test_without_a_rate_reads_are_free() -> None:
    limits, caller = RateLimiter(clock=Clock()), _caller()
    for _ in range(1000):
        limits.take_reads(caller, 10)


def test_wrong_credentials_of_an_address_are_refused_until_it_has_waited() -> None:
    clock = Clock()
    limits = RefusalLimiter(clock=clock)
    for _ in range(60):
        limits.require_room("192.0.2.1")
        limits.count("192.0.2.1")
    with pytest.raises(RateLimited):
        limits.require_room("::ffff:192.0.2.1")
    limits.require_room("192.0.2.2")
    clock.now += 1
    limits.require_room("192.0.2.1")


def test_a_network_of_ipv6_is_one_address() -> None:
    limits = RefusalLimiter(clock=Clock())
    for number in range(60):
        limits.count(f"2001:db8::{number:x}")
    with pytest.raises(RateLimited):
        limits.require_room("2001:db8::ffff")
    limits.require_room("2001:db8:0:1::1")
    limits.require_room("no address")


def test_addresses_are_forgotten_beyond_a_bound() -> None:
    limits = RefusalLimiter(clock=Clock())
    for number in range(10_050):
        limits.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(limits._refusals._levels) == 10_000
