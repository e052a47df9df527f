"""Keys and tokens: who is let through, for how long, and how often the database is queried."""

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import jwt
import pytest

from db.accounts.keys import NewKey
from serving.accounts.authentication import Authenticator, digest_key, generate_key, is_weak, parse_key_id
from serving.accounts.rate_limits import RateLimiter
from serving.accounts.tokens import TokenSigner
from serving.core.caller import Caller, Role
from serving.errors import RateLimited, StoreUnavailable, Unauthenticated
from tests.fakes.accounts import FakeKeyRepository
from tests.fakes.store import FakeStore

pytestmark = pytest.mark.anyio
KEY = b"k" * 32
AUDIENCE = "valence:tests"


class World:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.store = FakeStore()
        self.keys = FakeKeyRepository(self.store)
        self.authenticator = Authenticator(
            self.keys,
            tokens=TokenSigner([KEY], audience=AUDIENCE, seconds=60, now=lambda: self.time),
            now=lambda: self.time,
            monotonic=lambda: self.time,
        )

    def sign(self, claims: dict[str, object]) -> str:
        return jwt.encode(
            claims, KEY, algorithm="HS256", headers={"kid": hashlib.sha256(KEY).hexdigest()[:16]}
        )

    async def add(self, role: Role = Role.CLIENT, *, ends: float | None = None):
        key = generate_key()
        expires = None if ends is None else datetime.fromtimestamp(ends, UTC)
        await self.keys.create(
            NewKey(id=key.id, digest=key.digest, role=role, name="test", expires_at=expires), actor=None
        )
        return key


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("secret", "weak"),
    [("swordfish", True), ("a" * 64, True), ("ab" * 32, True), ("f3" * 10 + "0123456789abcdef", False)],
)
def test_a_key_of_somebody_else_s_making_may_be_weak(secret: str, weak: bool) -> None:
    assert is_weak(f"vk_{'0' * 32}_{secret}") is weak
    assert not is_weak(generate_key().text)


def test_a_key_names_its_id_and_hides_its_text() -> None:
    key = generate_key()
    assert parse_key_id(key.text) == key.id
    assert key.text not in repr(key)
    assert key.digest == digest_key(key.text)
    assert len(key.digest) == 32


@pytest.mark.parametrize(
    "text", ["", "vk_", "vk__x", "vk_zz_x", "vk_" + "a" * 32, "vk_" + "g" * 32 + "_x", "x" * 40]
)
def test_what_is_no_key_names_no_id(text: str) -> None:
    assert parse_key_id(text) is None


async def test_a_good_key_is_its_owner_and_a_wrong_secret_is_nobody(world: World) -> None:
    key = await world.add(Role.ENGINEER)
    assert await world.authenticator.check(key.text) == Caller(
        key_id=key.id, holder_id=key.id, role=Role.ENGINEER, rate_limit=None
    )
    for wrong in (key.text[:-1], key.text + "x", generate_key().text, "vk_nonsense", "nonsense", "é"):
        with pytest.raises(Unauthenticated) as refused:
            await world.authenticator.check(wrong)
        assert wrong not in str(refused.value) or len(wrong) == 1


async def test_a_checked_key_is_trusted_for_a_while_and_then_looked_up_again(world: World) -> None:
    key = await world.add()
    for _ in range(5):
        await world.authenticator.check(key.text)
    assert world.keys.lookups == 1
    await world.keys.revoke(key.id, actor=None)
    await world.authenticator.check(key.text)
    world.time += 5
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(key.text)
    assert world.keys.lookups == 2


async def test_concurrent_checks_share_one_look_up_even_if_the_first_leaves(world: World) -> None:
    key = await world.add()
    first = asyncio.create_task(world.authenticator.check(key.text))
    others = [asyncio.create_task(world.authenticator.check(key.text)) for _ in range(10)]
    await asyncio.sleep(0)
    first.cancel()
    assert {caller.key_id for caller in await asyncio.gather(*others)} == {key.id}
    assert world.keys.lookups == 1


async def test_a_trusted_key_outlives_the_database_until_its_trust_ends(world: World) -> None:
    key, other = await world.add(), await world.add()
    await world.authenticator.check(key.text)
    world.store.down = True
    await world.authenticator.check(key.text)
    with pytest.raises(StoreUnavailable):
        await world.authenticator.check(other.text)
    world.time += 5
    with pytest.raises(StoreUnavailable):
        await world.authenticator.check(key.text)
    world.store.down = False
    await world.authenticator.check(key.text)


async def test_an_expired_key_dies_at_once(world: World) -> None:
    key = await world.add(ends=world.time + 1)
    await world.authenticator.check(key.text)
    world.time += 1
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(key.text)


async def test_a_token_stands_for_its_key_until_it_expires(world: World) -> None:
    key = await world.add(Role.ENGINEER)
    token = await world.authenticator.issue_token(str(key.id), key.text)
    assert (token.seconds, token.role) == (60, Role.ENGINEER)
    assert (await world.authenticator.check(token.text)).key_id == key.id
    world.time += 60
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(token.text)


async def test_a_token_dies_with_its_key(world: World) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    await world.keys.revoke(key.id, actor=None)
    world.time += 5
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(token.text)


async def test_a_token_wants_the_key_of_its_client_id(world: World) -> None:
    key, other = await world.add(), await world.add()
    for client in (str(other.id), "nobody", ""):
        with pytest.raises(Unauthenticated):
            await world.authenticator.issue_token(client, key.text)


async def test_forged_tokens_are_refused(world: World) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    claims = jwt.decode(token.text, options={"verify_signature": False})
    forged = [
        jwt.encode({**claims, "role": "admin"}, "another key of thirty-two bytes!", algorithm="HS256"),
        jwt.encode(claims, KEY, algorithm="HS256"),
        jwt.encode(claims, None, algorithm="none"),
        token.text[:-2],
    ]
    for text in forged:
        with pytest.raises(Unauthenticated):
            await world.authenticator.check(text)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"exp": float("inf")}, id="it never expires"),
        pytest.param({"exp": float("nan")}, id="its end is not a number"),
        pytest.param({"exp": None}, id="its end is nothing"),
        pytest.param({"exp": "1800000060"}, id="its end is a text"),
        pytest.param({"exp": -1}, id="its end is before 1970"),
        pytest.param({"exp": 10**400}, id="its end is larger than a float"),
        pytest.param({"exp": 1_800_000_061}, id="it lives longer than tokens do"),
        pytest.param({"iat": float("-inf")}, id="it was always there"),
        pytest.param({"iat": float("nan")}, id="its start is not a number"),
        pytest.param({"iat": True, "exp": 1_800_000_060}, id="its start is a truth"),
        pytest.param({"iat": 1_800_000_031, "exp": 1_800_000_091}, id="it was issued in the future"),
        pytest.param({"iat": 1_800_000_060, "exp": 1_800_000_060}, id="it has no life"),
    ],
)
async def test_a_token_whose_times_were_not_given_here_is_refused(
    world: World, changed: dict[str, object]
) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    claims = jwt.decode(token.text, options={"verify_signature": False})
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(world.sign({**claims, **changed}))


@pytest.mark.parametrize("missing", ["iat", "exp", "sub", "role", "iss", "aud"])
async def test_a_token_without_one_of_its_claims_is_refused(world: World, missing: str) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    claims = jwt.decode(token.text, options={"verify_signature": False})
    assert (await world.authenticator.check(world.sign(claims))).key_id == key.id
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(world.sign({k: v for k, v in claims.items() if k != missing}))


async def test_a_token_of_another_installation_is_refused(world: World) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    elsewhere = Authenticator(
        world.keys, tokens=TokenSigner([KEY], audience="valence:staging", now=lambda: world.time)
    )
    with pytest.raises(Unauthenticated):
        await elsewhere.check(token.text)


async def test_keys_change_without_a_stop(world: World) -> None:
    key = await world.add()
    old, new = b"o" * 32, b"n" * 32

    def replica(*keys: bytes) -> Authenticator:
        return Authenticator(world.keys, tokens=TokenSigner(keys, audience=AUDIENCE, now=lambda: world.time))

    before, known, changed, after = replica(old), replica(old, new), replica(new, old), replica(new)
    signed_old = await known.issue_token(str(key.id), key.text)
    signed_new = await changed.issue_token(str(key.id), key.text)
    for token, takers in ((signed_old, (before, known, changed)), (signed_new, (known, changed, after))):
        for taker in takers:
            assert (await taker.check(token.text)).key_id == key.id
    for token, refuser in ((signed_old, after), (signed_new, before)):
        with pytest.raises(Unauthenticated):
            await refuser.check(token.text)


async def test_a_token_of_a_replica_whose_clock_is_a_little_ahead_is_taken(world: World) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    world.time -= 30
    assert (await world.authenticator.check(token.text)).key_id == key.id
    world.time -= 1
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(token.text)


async def test_a_token_for_another_role_than_its_key_has_is_refused(world: World) -> None:
    key = await world.add()
    token = await world.authenticator.issue_token(str(key.id), key.text)
    world.store.keys[key.id] = replace(world.store.keys[key.id], role="admin")
    world.time += 5
    with pytest.raises(Unauthenticated):
        await world.authenticator.check(token.text)


async def test_uses_are_noted_together(world: World) -> None:
    key = await world.add()
    await world.authenticator.check(key.text)
    await world.authenticator.note_uses()
    assert world.store.keys[key.id].last_used_at == datetime.fromtimestamp(world.time, UTC)


def test_a_bucket_gives_its_rate_and_says_when_it_refills() -> None:
    time = 0.0
    limits = RateLimiter(10, clock=lambda: time)
    caller = _caller(None)
    for _ in range(10):
        limits.take(caller, 1)
    with pytest.raises(RateLimited) as refused:
        limits.take(caller, 1)
    assert refused.value.retry_after == pytest.approx(0.1)
    time += 0.1
    limits.take(caller, 1)


def test_a_batch_larger_than_the_bucket_passes_once_and_is_paid_for() -> None:
    time = 0.0
    limits = RateLimiter(10, clock=lambda: time)
    caller = _caller(None)
    limits.take(caller, 1000)
    with pytest.raises(RateLimited) as refused:
        limits.take(caller, 1)
    assert refused.value.retry_after == pytest.approx(99.1)


def test_a_key_s_own_rate_comes_before_the_default_and_zero_is_no_limit() -> None:
    limits = RateLimiter(1, clock=lambda: 0.0)
    for _ in range(100):
        limits.take(_caller(0.0), 100)
    own = _caller(2.0)
    limits.take(own, 2)
    with pytest.raises(RateLimited):
        limits.take(own, 1)


def _caller(rate: float | None) -> Caller:
    key = generate_key()
    return Caller(key_id=key.id, holder_id=key.id, role=Role.CLIENT, rate_limit=rate)
