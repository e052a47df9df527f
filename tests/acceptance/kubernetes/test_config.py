"""The manifests' settings of Ray, on a cluster of several nodes: jobs, environment, configuration, predictions.

The overlays share one `serveConfigV2` and differ in their settings. Without a GPU here, the gpu overlay's device is the
CPU, and its node says that it has a GPU; engine, resources and everything else are the manifests'.
"""

import secrets

import httpx
import pytest

from k8s.rendered import render
from tests.support.clock import eventually
from tests.support.nodes import new_cluster
from tests.support.postgres import TestServer

# The test's database speaks no TLS.
ADAPTED = {
    "production": {"PGSSLMODE": "prefer"},
    "gpu": {"PGSSLMODE": "prefer", "VALENCE_DEVICE": "cpu"},
}


# `gpu` differs from `production` in settings whose rendering and engines have tests of their own.
@pytest.mark.parametrize("overlay", ["production", pytest.param("gpu", marks=pytest.mark.slow)])
def test_an_overlay_serves_predictions_on_several_nodes(
    overlay: str, server: TestServer, mlflow_url: str
) -> None:
    with new_cluster(
        render(overlay),
        database=server.empty(),
        mlflow=mlflow_url,
        installation_key=secrets.token_hex(32),
        **ADAPTED[overlay],
    ) as cluster:
        key = cluster.deploy()
        nobody = httpx.get(f"http://127.0.0.1:{cluster.dashboard}/api/serve/applications/")
        assert nobody.status_code == httpx.codes.UNAUTHORIZED
        with httpx.Client(base_url=cluster.url, headers={"X-API-Key": key}, timeout=60) as client:
            # KubeRay's check before it sends a worker traffic: HAProxy learns a moment later than Serve.
            eventually(
                lambda: "success" in client.get("/-/healthz").text, within=30, what="HAProxy knows a replica"
            )
            predicts(client)

            # The operator sends the configuration again; the encoders, which it doesn't declare, keep running.
            before = cluster.applications()
            assert any(name.startswith("encoder-") for name in before)
            cluster.apply()
            eventually(cluster.running, within=60, what="the declared application runs again")
            assert before.items() <= cluster.applications().items()
            predicts(client)


def test_the_overlays_share_one_configuration() -> None:
    configurations = {
        resource["spec"]["serveConfigV2"]
        for overlay in ("local", *ADAPTED)
        for resource in render(overlay)
        if resource["kind"] == "RayService"
    }
    assert len(configurations) == 1


def predicts(client: httpx.Client) -> None:
    response = client.post("/v1/predict", json={"text": "The battery lasts for days, I love it!"})
    assert response.status_code == httpx.codes.CREATED, response.text
    assert response.json()["sentiment"] == "positive"
    body = client.post("/v1/similar", json={"text": "great battery life", "k": 1}).json()
    assert body["results"][0]["text_id"] == response.json()["text_id"]
