"""More replicas under load and fewer after it, without a failed request; and what HAProxy refuses by itself."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.support.clients import Clients
from tests.support.clock import eventually
from tests.support.live import LivePlatform, live_platform

ROOM = 30
INGRESS_REPLICAS = 2


@pytest.fixture(scope="module")
def elastic() -> Iterator[LivePlatform]:
    with live_platform(
        VALENCE_ENCODER_MAX_REPLICAS="2",
        VALENCE_ENCODER_TARGET_ONGOING="0.5",
        VALENCE_ENCODER_UPSCALE_SECONDS="1",
        VALENCE_ENCODER_DOWNSCALE_SECONDS="2",
        VALENCE_ENCODER_CPUS="0.3",
        VALENCE_INGRESS_REPLICAS=str(INGRESS_REPLICAS),
        VALENCE_INGRESS_MAX_ONGOING=str(ROOM),
    ) as platform:
        yield platform


def computing(platform: LivePlatform, clients: Clients) -> int:
    """How many encoder replicas took part in the next hundred answers."""
    replicas = platform.named("ServeReplica:encoder-")
    before = {replica.pid: replica.cpu_times().user for replica in replicas if replica.is_running()}
    target = len(clients.answers) + 100
    eventually(lambda: len(clients.answers) >= target, within=60, what="a hundred answers")
    shares = [replica.cpu_times().user - before[replica.pid] for replica in replicas if replica.is_running()]
    return sum(share > 0.1 for share in shares)


def test_replicas_come_and_go_with_the_load_and_no_request_fails(elastic: LivePlatform) -> None:
    assert len(elastic.named("ServeReplica:encoder-")) == 1
    assert len(elastic.named("ServeReplica:valence:ingress")) == INGRESS_REPLICAS
    with Clients(elastic, 16) as many:
        eventually(
            lambda: computing(elastic, many) == 2, within=120, what="a second replica computes under load"
        )
    assert not many.failures
    with Clients(elastic, 1) as few:
        eventually(
            lambda: len(elastic.named("ServeReplica:encoder-")) == 1,
            within=120,
            what="the second replica is gone",
        )
    assert not few.failures
    with elastic.client() as client:
        stored = [
            client.get(f"/v1/predictions/{prediction}").status_code
            for prediction in (answer["id"] for answer in many.answers[::50])
        ]
    assert set(stored) == {200}


async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
    return await client.post("/v1/predict", json={"text": f"Number {number} of a crowd is pleased."})


async def crowd(platform: LivePlatform, size: int) -> list[httpx.Response]:
    async with platform.async_client() as client:
        return list(await asyncio.gather(*(ask(client, number) for number in range(size))))


def test_beyond_the_room_of_all_ingress_replicas_haproxy_says_429(elastic: LivePlatform) -> None:
    answers = asyncio.run(crowd(elastic, 4 * ROOM * INGRESS_REPLICAS))
    told = Counter(answer.status_code for answer in answers)
    assert set(told) == {201, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
