"""Scaling: more replicas under load, fewer after it, no failed request; and requests that HAProxy refuses itself."""

import asyncio
from collections import Counter

import httpx

from tests.support.clients import Clients
from tests.support.clock import eventually
from tests.support.live import CONNECTIONS, LivePlatform


def count_computing_replicas(platform: LivePlatform, clients: Clients) -> int:
    """Return the number of encoder replicas that took part in the next hundred answers."""
    replicas = platform.find_processes("ServeReplica:encoder-")
    before = {replica.pid: replica.cpu_times().user for replica in replicas if replica.is_running()}
    target = len(clients.answers) + 100
    eventually(lambda: len(clients.answers) >= target, within=60, what="a hundred answers")
    shares = [replica.cpu_times().user - before[replica.pid] for replica in replicas if replica.is_running()]
    return sum(share > 0.1 for share in shares)


def test_replicas_come_and_go_with_the_load_and_no_request_fails(watched: LivePlatform) -> None:
    eventually(
        lambda: len(watched.find_processes("ServeReplica:encoder-")) == 1,
        within=120,
        what="one replica is enough",
    )
    assert len(watched.find_processes("ServeReplica:valence:ingress")) == int(
        watched.settings["VALENCE_INGRESS_REPLICAS"]
    )
    with Clients(watched, 16) as many:
        eventually(
            lambda: count_computing_replicas(watched, many) == 2,
            within=120,
            what="a second replica computes under load",
        )
    assert not many.failures
    with Clients(watched, 1) as few:
        eventually(
            lambda: len(watched.find_processes("ServeReplica:encoder-")) == 1,
            within=120,
            what="the second replica is gone",
        )
    assert not few.failures
    with watched.client() as client:
        stored = [
            client.get(f"/v1/predictions/{prediction}").status_code
            for prediction in (answer["id"] for answer in many.answers[::50])
        ]
    assert set(stored) == {200}


async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
    return await client.post("/v1/predict", json={"text": f"Number {number} of a crowd is pleased."})


async def crowd(platform: LivePlatform, size: int) -> list[httpx.Response]:
    """Send many requests while no encoder computes, until one of them is answered even so."""
    encoders = platform.find_processes("ServeReplica:encoder-")
    async with platform.async_client() as client:
        for encoder in encoders:
            encoder.suspend()
        try:
            asked = [asyncio.create_task(ask(client, number)) for number in range(size)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for encoder in encoders:
                encoder.resume()
        return list(await asyncio.gather(*asked))


def test_beyond_the_room_of_all_ingress_replicas_haproxy_says_429(watched: LivePlatform) -> None:
    each, replicas = (watched.settings[f"VALENCE_INGRESS_{name}"] for name in ("MAX_ONGOING", "REPLICAS"))
    answers = asyncio.run(crowd(watched, 4 * int(each) * int(replicas)))
    results = Counter(answer.status_code for answer in answers)
    assert set(results) == {201, 429}
    # All connections of the client ask at once, and no more than the room are let in.
    assert results[201] <= len(answers) - (CONNECTIONS - int(each) * int(replicas))
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
