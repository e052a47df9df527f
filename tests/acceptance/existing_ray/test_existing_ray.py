"""`valence up` on a Ray cluster that exists: two raylets with another folder and environment than the platform's."""

import base64
from collections.abc import Iterator

import httpx
import pytest

from tests.support.clock import eventually
from tests.support.existing_ray import ExistingRay, existing_ray
from tests.support.live import LivePlatform, unstarted_platform

_TEXT_KEY = base64.b64encode(b"a key that nobody else may see..").decode()
_SHOP = """
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Shop:
    def __call__(self, request):
        return "open"
serve.run(Shop.bind(), name="shop", route_prefix="/shop")
print("null")
"""
_APPLICATIONS = "print(json.dumps(sorted(serve.status().applications)))"
_DETAILS = """
controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
details = ray.get(controller.get_serve_instance_details.remote())
print(json.dumps([str(details), str(serve.status()), str(ray.nodes())]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ExistingRay]:
    with existing_ray() as running:
        yield running


@pytest.fixture
def platform(cluster: ExistingRay) -> Iterator[LivePlatform]:
    with unstarted_platform(RAY_ADDRESS=cluster.address, **cluster.authentication) as prepared:
        yield prepared


def test_it_serves_beside_another_application_and_takes_only_its_own_away(
    cluster: ExistingRay, platform: LivePlatform
) -> None:
    platform.settings["VALENCE_TEXT_KEYS"] = f"a:{_TEXT_KEY}"
    up = platform.valence("up")
    assert up.returncode == 0, up.stderr + platform.log() + cluster.log()
    assert up.stderr.count("demands no token") == 1
    with platform.client() as client:
        answer = client.post("/v1/predict", json={"text": "so good"})
    assert answer.status_code == httpx.codes.CREATED
    assert len(answer.headers.get_list("x-request-id")) == 1

    seen = str(cluster.run(_DETAILS)) + cluster.visible()
    assert "valence" in seen
    for secret in (_TEXT_KEY, (platform.home / "installation.key").read_text().strip()):
        assert secret not in seen

    with unstarted_platform(RAY_ADDRESS=cluster.address, **cluster.authentication) as second:
        refused = second.valence("up")
    assert refused.returncode == 1
    assert f"another platform runs on this cluster, from {platform.home}" in refused.stderr

    cluster.run(_SHOP)
    platform.valence("down")
    assert cluster.run(_APPLICATIONS) == ["shop"]
    # The other application is new, too, and HAProxy learns of a replica a moment later than Serve.
    eventually(
        lambda: httpx.get(f"{platform.url}/shop").text == "open",
        within=30,
        what="the other application answers",
    )
