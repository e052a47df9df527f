import json

import httpx
import pytest

from serving.cli.client import Client, RequestFailed


def answering(status: int, content: object = None, **headers: str) -> tuple[Client, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        body = (
            b""
            if content is None
            else content
            if isinstance(content, bytes)
            else json.dumps(content).encode()
        )
        return httpx.Response(status, content=body, headers=headers)

    return Client("http://platform", key="vk_1", transport=httpx.MockTransport(handle)), seen


def test_fields_that_are_none_are_left_out_and_the_key_is_sent() -> None:
    client, seen = answering(201, {"id": "1"})
    with client:
        assert client.post("/v1/predict", text="fine", version=None) == {"id": "1"}
    assert json.loads(seen[0].content) == {"text": "fine"}
    assert seen[0].headers["authorization"] == "Bearer vk_1"


def test_answer_without_a_body_is_none() -> None:
    client, _ = answering(204)
    with client:
        assert client.delete("/v1/keys/1") is None


def test_problem_document_becomes_one_line_with_its_faults() -> None:
    problem = {
        "title": "Unprocessable",
        "detail": "text: blank (and 1 more: see errors)",
        "errors": [
            {"loc": ["body", "text"], "msg": "blank"},
            {"loc": ["body", "k"], "msg": "too large"},
            {"loc": ["body"], "msg": "too many"},
        ],
    }
    client, _ = answering(422, problem)
    with client, pytest.raises(RequestFailed) as caught:
        client.post("/v1/predict", text=" ")
    assert str(caught.value) == "422 Unprocessable: text: blank; k: too large; body: too many"
    assert caught.value.status == 422


def test_overload_says_when_to_try_again() -> None:
    client, _ = answering(429, {"title": "Overloaded"}, **{"Retry-After": "2"})
    with client, pytest.raises(RequestFailed, match=r"429 Overloaded: try again in 2 s"):
        client.get("/v1/models")


def test_a_detail_that_says_to_try_again_is_not_doubled() -> None:
    problem = {"title": "Not ready", "detail": "no replica could answer: send the request again"}
    client, _ = answering(503, problem, **{"Retry-After": "1"})
    with client, pytest.raises(RequestFailed) as caught:
        client.post("/v1/similar", text="x")
    assert str(caught.value) == "503 Not ready: no replica could answer: send the request again in 1 s"


def test_missing_key_says_where_keys_come_from() -> None:
    client, _ = answering(401, {"title": "Unauthorized"})
    with client, pytest.raises(RequestFailed, match="VALENCE_API_KEY"):
        client.get("/v1/models")


def test_refusal_without_a_problem_document_is_still_shown() -> None:
    client, _ = answering(502, b"<html>bad gateway</html>")
    with client, pytest.raises(RequestFailed, match="502 Bad Gateway"):
        client.get("/v1/models")


def test_success_that_is_no_json_is_somebody_elses_server() -> None:
    client, _ = answering(200, b"<html>hello</html>")
    with client, pytest.raises(RequestFailed, match="is this Valence's URL"):
        client.get("/v1/models")


@pytest.mark.parametrize(
    ("error", "words"), [(httpx.ConnectError, "start the platform"), (httpx.ReadTimeout, "in time")]
)
def test_unreachable_platform_says_what_to_do(error: type[httpx.TransportError], words: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise error("broken", request=request)

    with (
        Client("http://platform", transport=httpx.MockTransport(handle)) as client,
        pytest.raises(RequestFailed, match=words),
    ):
        client.get("/v1/models")
