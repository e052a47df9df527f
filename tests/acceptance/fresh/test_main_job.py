"""The main job on a live platform: a text is answered, remembered, and found again by meaning."""

import asyncio
import gzip
import json
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
import pytest

from db.embedded.server import EmbeddedPostgres
from tests.support.clock import eventually
from tests.support.live import LivePlatform

pytestmark = pytest.mark.anyio

SUBJECTS = ("battery", "screen", "camera", "keyboard", "film", "plot", "service", "delivery", "food", "room")
VERDICTS = ("is a joy", "broke at once", "works", "disappoints", "amazed us all", "is what it is", "stinks")


def sentence(number: int) -> str:
    """Return a distinct text; lengths and scripts vary, and some have emoji."""
    subject, verdict = SUBJECTS[number % len(SUBJECTS)], VERDICTS[number % len(VERDICTS)]
    tail = " and I would say so to anybody who asks" * (number % 5)
    return f"The {subject} of order {number} {verdict}{tail}{' 😀' if number % 7 == 0 else ''}."


def rows(live: LivePlatform, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(EmbeddedPostgres(live.home).url("valence")) as connection:
        return connection.execute(statement, parameters).fetchall()


def test_a_text_gets_a_sentiment_and_is_found_again_by_meaning(live: LivePlatform) -> None:
    with live.client() as client:
        response = client.post("/v1/predict", json={"text": "The battery lasts for days, I love it!"})
        assert response.status_code == 201
        prediction = response.json()
        assert (prediction["sentiment"], prediction["model_version"]) == ("positive", "3")
        assert "store;dur=" in response.headers["Server-Timing"]
        assert len(response.headers.get_list("X-Request-Id")) == 1
        body = client.post("/v1/similar", json={"text": "great battery life", "k": 3}).json()
    assert prediction["text_id"] in [result["text_id"] for result in body["results"]]
    assert body["complete"]


def test_what_strangers_reach_and_the_database_inherit_no_secret(live: LivePlatform) -> None:
    inherited = {
        process.name(): process.environ()
        for process in live.processes()
        if process.name() in ("haproxy", "postgres") or "haproxy.fallback" in " ".join(process.cmdline())
    }
    assert {"haproxy", "postgres"} < inherited.keys()
    for program, variables in inherited.items():
        secret = [name for name in variables if name.startswith(("RAY_", "DATABASE_", "MLFLOW_"))]
        assert not secret, program


def test_all_first_versions_are_registered_and_answer_by_name(live: LivePlatform) -> None:
    with live.client() as client:

        def versions() -> dict[str, Any]:
            return {v["version"]: v for v in client.get("/v1/models/sentiment").json()["versions"]}

        def asked(version: str) -> httpx.Response:
            return client.post("/v1/predict", json={"text": "wonderful", "version": version})

        result = versions()
        assert {name: v["kind"] for name, v in result.items()} == {"1": "lexicon", "2": "head", "3": "joint"}
        assert result["3"]["aliases"] == ["champion"]
        assert all(v["metrics"] for v in result.values())
        assert {result["1"]["state"], result["3"]["state"]} == {"ready"}
        # The encoder of the head runs only after the first request for it.
        eventually(lambda: asked("2").status_code != 503, within=90, what="version 2 answers")
        for version in result:
            answer = asked(version).json()
            assert (answer["model_version"], answer["arm"]) == (version, "named")


def test_every_listening_socket_is_on_loopback(live: LivePlatform) -> None:
    elsewhere = [
        (process.name(), connection.laddr)
        for process in live.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1")
    ]
    assert elsewhere == []


def test_haproxy_is_in_front_with_a_private_socket_and_refuses_in_problem_json(live: LivePlatform) -> None:
    (process,) = live.find_processes("bin/haproxy -db")
    command = process.cmdline()
    config = Path(command[command.index("-f") + 1])
    (socket,) = [word for word in config.read_text().split() if word.endswith("admin.sock")]
    assert Path(socket).stat().st_mode & 0o077 == 0
    with live.client() as client:
        refusal = client.get("/" + "x" * 20_000)
    assert refusal.status_code == 414
    assert refusal.headers["Content-Type"] == "application/problem+json"
    assert refusal.headers["X-Request-Id"]
    assert refusal.json()["status"] == 414


def test_no_secret_is_logged(live: LivePlatform) -> None:
    logs = "".join(
        path.read_text(errors="replace") for path in (live.home / "logs").rglob("*") if path.is_file()
    )
    assert live.key not in logs
    assert (live.home / "installation.key").read_text() not in logs


def test_up_again_says_that_it_is_up(live: LivePlatform) -> None:
    again = live.valence("up")
    assert again.returncode == 0
    assert "already up" in again.stdout + again.stderr


def test_a_second_platform_on_the_same_port_fails_with_one_clear_line(
    live: LivePlatform, tmp_path: Path
) -> None:
    other = LivePlatform(home=tmp_path / "other", port=live.port)
    refused = other.valence("up")
    assert refused.returncode == 1
    assert refused.stderr.strip().count("\n") == 0
    assert f"port {live.port} is taken" in refused.stderr


async def test_concurrent_clients_get_their_own_answers_and_nothing_is_lost(live: LivePlatform) -> None:
    """64 clients, singles and batches: each answer is the text's own, each id is stored once with its vector."""
    texts = [sentence(number) for number in range(int(os.environ.get("VALENCE_TEST_TEXTS", "1200")))]
    answers: dict[str, dict[str, Any]] = {}
    queue = [texts[start : start + (1 if start % 3 else 8)] for start in _cuts(len(texts))]

    async with live.async_client() as client:

        async def work() -> None:
            while queue:
                mine = queue.pop()
                if len(mine) == 1:
                    response = await client.post(
                        "/v1/predict", json={"text": mine[0], "return_embedding": True}
                    )
                    assert response.status_code == 201, response.text
                    answers[mine[0]] = response.json()
                else:
                    body = {"texts": mine, "return_embedding": True}
                    response = await client.post("/v1/predict/batch", json=body)
                    assert response.status_code == 201, response.text
                    answers.update(zip(mine, response.json()["predictions"], strict=True))

        await asyncio.gather(*(work() for _ in range(64)))
        assert len(answers) == len(texts)
        alone = texts[:: len(texts) // 40]
        for text in alone:
            own = (await client.post("/v1/predict", json={"text": text, "return_embedding": True})).json()
            for label, probability in own["scores"].items():
                assert answers[text]["scores"][label] == pytest.approx(probability, abs=0.02)

    vectors = np.array([answers[text]["embedding"] for text in texts])
    own = np.array([answers[text]["embedding"] for text in alone])
    assert (
        np.argmax(own @ vectors.T, axis=1) == np.arange(0, len(texts), len(texts) // 40)[: len(own)]
    ).all()
    stored = rows(
        live,
        "SELECT p.id::text, t.content, e.embedding::real[] FROM predictions p JOIN text_inputs t ON t.id = p.text_id "
        "JOIN embeddings e ON e.text_id = t.id WHERE p.id = ANY(%s)",
        [answer["id"] for answer in answers.values()],
    )
    assert len(stored) == len(texts)
    by_id = {row[0]: row for row in stored}
    for text, answer in answers.items():
        _, content, vector = by_id[answer["id"]]
        assert content == text
        assert float(np.dot(vector, answer["embedding"])) > 0.999


def _cuts(total: int) -> list[int]:
    starts, start = [], 0
    while start < total:
        starts.append(start)
        start += 1 if start % 3 else 8
    return starts


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text": "\\ud800"}', 422),
        (b'{"text": "a\\u0000b"}', 422),
        (b'{"text": " "}', 422),
        (b'{"text": ', 422),
        (json.dumps({"text": "x" * 20_001}).encode(), 422),
        (json.dumps({"text": "x" * (3 * 2**20)}).encode(), 413),
    ],
    ids=["surrogate", "nul", "blank", "malformed", "long", "large"],
)
def test_bad_input_through_the_whole_stack_is_a_problem(live: LivePlatform, body: bytes, status: int) -> None:
    before = rows(live, "SELECT count(*) FROM text_inputs")
    with live.client() as client:
        answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert rows(live, "SELECT count(*) FROM text_inputs") == before


def test_http_s_manners_hold_through_the_proxy(live: LivePlatform) -> None:
    origin = {"Origin": "https://shop.example.org"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with live.client() as client:
        for path in ("/health/ready", "/docs", "/openapi.json", "/console", "/metrics", "/v1/models"):
            head = client.head(path)
            assert (path, head.status_code, head.content) == (path, 200, b"")
        preflight = client.options("/v1/predict", headers=origin | asked)
        small = client.post("/v1/predict", content=gzip.compress(b'{"text": "so good"}'), headers=zipped)
        bomb = client.post("/v1/predict", content=gzip.compress(bytes(64 << 20)), headers=zipped)
        home = client.get("/", follow_redirects=True)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
        200,
        origin["Origin"],
    )
    assert (small.status_code, bomb.status_code) == (201, 413)
    assert (home.status_code, home.url.path) == (200, "/console")


def test_large_and_binary_bodies_pass_the_whole_stack_both_ways(live: LivePlatform) -> None:
    large = json.dumps({"model": "all-MiniLM-L6-v2", "input": ["so good"] * 2048}).encode().ljust(16 * 2**20)
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 11}}
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}]}
    )
    length = {"Inference-Header-Content-Length": str(len(head))}
    with live.client() as client:
        embedded = client.post(
            "/v1/embeddings", content=large, headers={"Content-Type": "application/json"}, timeout=60
        )
        over = client.post(
            "/v1/embeddings", content=large + b" ", headers={"Content-Type": "application/json"}
        )
        answer = client.post(
            "/v2/models/sentiment/infer", content=head.encode() + b"\x07\0\0\0so good", headers=length
        )
    vectors = [each["embedding"] for each in embedded.json()["data"]]
    assert (len(vectors), over.status_code, answer.status_code) == (2048, 413, 200)
    tail = answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]
    assert np.frombuffer(tail, "<f4") @ np.array(vectors[0]) == pytest.approx(1, abs=1e-2)


def test_the_command_line_predicts_judges_and_finds(live: LivePlatform) -> None:
    result = live.valence("predict", "What a lovely garden", "--json")
    assert result.returncode == 0, result.stderr
    prediction = json.loads(result.stdout)
    judged = live.valence("feedback", prediction["id"], "--correct", "--json")
    assert judged.returncode == 0, judged.stderr
    outcome = live.valence("similar", "pretty garden", "--json")
    assert prediction["text_id"] in outcome.stdout


def test_health_needs_no_key_and_everything_else_does(live: LivePlatform) -> None:
    assert httpx.get(f"{live.url}/health/ready").status_code == 200
    assert httpx.get(f"{live.url}/v2/health/live").status_code == 200
    refused = httpx.post(f"{live.url}/v1/predict", json={"text": "hello"})
    assert refused.status_code == 401
    assert "WWW-Authenticate" in refused.headers
