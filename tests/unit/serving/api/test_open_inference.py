"""The Open Inference Protocol over fakes: its JSON in every form, and its binary tensors."""

import base64
import gzip
import json
import struct
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest

from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio

INFER = "/v2/models/sentiment/infer"
TEXTS = ["good", "bad"]
TENSOR: dict[str, Any] = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def _post(platform: Platform, content: bytes, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with platform.client() as client:
        return await client.post(INFER, content=content, headers=sent)


async def _infer(platform: Platform, tensor: dict[str, Any], **members: Any) -> httpx.Response:
    return await _post(platform, json.dumps({"inputs": [TENSOR | tensor]} | members).encode())


def _labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    assert outputs["label"]["shape"] == [len(outputs["label"]["data"])]
    labels: list[str] = outputs["label"]["data"]
    return labels


def _pack(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def _binary(tail: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    """Return a body whose texts are these bytes, and its headers."""
    tensor = {
        "name": "text",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }
    head = json.dumps({"inputs": [tensor]} | members).encode()
    return head + tail, {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


PACKED = _pack(b"good", b"bad")


@pytest.mark.parametrize("content_type", [None, "", "application/json", "application/octet-stream"])
async def test_a_body_without_a_media_type_is_json(platform: Platform, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert _labels(await _post(platform, json.dumps({"inputs": [TENSOR]}).encode(), **headers)) == [
        "positive",
        "negative",
    ]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json; charset=latin-1", "application/x-y"]
)
async def test_another_media_type_is_415(platform: Platform, content_type: str) -> None:
    answer = await _post(platform, json.dumps({"inputs": [TENSOR]}).encode(), content_type=content_type)
    assert (answer.status_code, set(answer.json())) == (415, {"error"})


async def test_members_that_are_not_known_are_ignored_everywhere(platform: Platform) -> None:
    extra = {"parameters": {"priority": 3, "nested": {"a": [1]}}, "x": 1}
    answer = await _infer(
        platform, extra, model_name="other", priority=1, outputs=[{"name": "label"} | extra], **extra
    )
    assert _labels(answer) == ["positive", "negative"]


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2], TEXTS),
        ([2, 1], TEXTS),
        ([1, 2], TEXTS),
        ([2.0, 1], TEXTS),
        ([1, 2, 1], TEXTS),
        ([2, 1], [["good"], ["bad"]]),
        ([1, 2], [["good", "bad"]]),
        ([2], [["good"], "bad"]),
        ([2, 1, 1], [[["good"]], [["bad"]]]),
    ],
)
async def test_texts_come_in_any_shape_with_one_axis(
    platform: Platform, shape: list[int], data: list[Any]
) -> None:
    assert _labels(await _infer(platform, {"shape": shape, "data": data})) == ["positive", "negative"]


@pytest.mark.parametrize("shape", [[1], [], [1, 1], [1, 1, 1]])
async def test_one_text_has_any_shape_of_one_element(platform: Platform, shape: list[int]) -> None:
    assert _labels(await _infer(platform, {"shape": shape, "data": ["good"]})) == ["positive"]


@pytest.mark.parametrize(
    "shape", [[3], [1], [], [2, 2], [2, 0], [-1], [-1, -2], [0], [True, 2], ["2"], None, 2, [2.5]]
)
async def test_a_shape_of_another_number_of_texts_is_refused(platform: Platform, shape: Any) -> None:
    answer = await _infer(platform, {"shape": shape})
    assert answer.status_code == 422
    assert "inputs.0.shape" in answer.json()["error"]


async def test_a_shape_of_two_long_axes_is_refused(platform: Platform) -> None:
    assert (await _infer(platform, {"shape": [2, 2], "data": ["good"] * 4})).status_code == 422


async def test_null_is_as_good_as_absent(platform: Platform) -> None:
    nothing = {"user_id": None, "unit": None, "content_type": None, "binary_data_output": None}
    for parameters in (None, {}, nothing):
        answer = await _infer(
            platform,
            {"parameters": parameters and {"content_type": None, "binary_data_size": None}},
            id=None,
            outputs=[{"name": "label", "parameters": parameters}],
            parameters=parameters,
        )
        assert _labels(answer) == ["positive", "negative"]
        assert "id" not in answer.json()
    assert len((await _infer(platform, {}, outputs=None)).json()["outputs"]) == 4
    assert len((await _infer(platform, {}, outputs=[])).json()["outputs"]) == 4


async def test_an_empty_id_is_none_and_another_comes_back(platform: Platform) -> None:
    assert "id" not in (await _infer(platform, {}, id="")).json()
    assert (await _infer(platform, {}, id="a b/ü")).json()["id"] == "a b/ü"


@pytest.mark.parametrize(
    "data", [None, "good", ["good", None], ["good", 3], ["good", " "], [], [[], []], [{}, {}]]
)
async def test_what_is_no_list_of_texts_is_refused(platform: Platform, data: Any) -> None:
    answer = await _infer(platform, {"data": data})
    assert answer.status_code == 422
    assert "inputs.0.data" in answer.json()["error"]


async def test_missing_data_are_said_to_be_missing(platform: Platform) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES"}
    answer = await _post(platform, json.dumps({"inputs": [tensor]}).encode())
    assert answer.json()["error"] == "the body is invalid: body.inputs.0.data: it is missing"


async def test_the_only_input_may_have_any_name_and_a_second_one_is_refused(platform: Platform) -> None:
    named = await _infer(platform, {"name": "input-1"})
    two = await _post(platform, json.dumps({"inputs": [TENSOR, TENSOR | {"name": "b"}]}).encode())
    none = await _post(platform, json.dumps({"inputs": []}).encode())
    other = await _infer(platform, {"datatype": "FP32", "data": [1.0, 2.0]})
    assert _labels(named) == ["positive", "negative"]
    assert [each.status_code for each in (two, none, other)] == [422, 422, 422]
    assert "inputs.0.datatype" in other.json()["error"]


@pytest.mark.parametrize("content_type", ["str", "np", "pd"])
async def test_codecs_of_plain_strings_are_understood(platform: Platform, content_type: str) -> None:
    parameters = {"content_type": content_type}
    answer = await _infer(platform, {"parameters": parameters, "shape": [2, 1]}, parameters=parameters)
    assert _labels(answer) == ["positive", "negative"]


async def test_base64_is_decoded_and_the_texts_are_stored_plain(platform: Platform) -> None:
    data = [base64.b64encode(text.encode()).decode() for text in ("good ü", "bad")]
    answer = await _infer(platform, {"data": data, "shape": [2, 1], "parameters": {"content_type": "base64"}})
    assert _labels(answer) == ["positive", "negative"]
    assert platform.store is not None
    assert {text.content for text in platform.store.texts.values()} == {"good ü", "bad"}


@pytest.mark.parametrize(
    "data", [["good", "bad!"], ["Z29vZA==", "gICA"], ["Z29vZA==", "Z29v ZA=="], ["ü", "ü"]]
)
async def test_what_isnt_text_in_base64_is_refused(platform: Platform, data: list[str]) -> None:
    answer = await _infer(platform, {"data": data, "parameters": {"content_type": "base64"}})
    assert answer.status_code == 422
    assert "inputs.0.data" in answer.json()["error"]
    assert platform.store is not None
    assert not platform.store.texts


async def test_a_codec_that_isnt_text_is_refused(platform: Platform) -> None:
    of_input = await _infer(platform, {"parameters": {"content_type": "pd_json"}})
    of_request = await _infer(platform, {}, parameters={"content_type": "base64"})
    assert [each.status_code for each in (of_input, of_request)] == [422, 422]
    assert "parameters.content_type" in of_input.json()["error"]
    assert "parameters.content_type" in of_request.json()["error"]


async def test_texts_come_as_binary_tensors(platform: Platform) -> None:
    for tail in (PACKED, _pack("good ü".encode(), b"bad")):
        content, headers = _binary(tail)
        answer = await _post(platform, content, **headers)
        assert _labels(answer) == ["positive", "negative"]
        assert LENGTH not in answer.headers
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream"])
async def test_binary_tensors_are_told_by_their_header_alone(
    platform: Platform, content_type: str | None
) -> None:
    content, headers = _binary(PACKED)
    headers = {LENGTH: headers[LENGTH]} | ({} if content_type is None else {"Content-Type": content_type})
    assert _labels(await _post(platform, content, **headers)) == ["positive", "negative"]
    assert _labels(await _post(platform, gzip.compress(content), content_encoding="gzip", **headers)) == [
        "positive",
        "negative",
    ]


async def test_the_header_may_span_the_whole_body(platform: Platform) -> None:
    content = json.dumps({"inputs": [TENSOR]}).encode()
    assert _labels(await _post(platform, content, **{LENGTH: str(len(content))})) == ["positive", "negative"]


@pytest.mark.parametrize("length", ["0", "5", "-1", "9999", "x", "1e3", "", "9" * 5000])
async def test_a_header_that_doesnt_fit_the_body_is_refused(platform: Platform, length: str) -> None:
    content, headers = _binary(PACKED)
    answer = await _post(platform, content, **headers | {LENGTH: length})
    assert (answer.status_code, set(answer.json())) == (422, {"error"})


@pytest.mark.parametrize(
    "tail",
    [
        PACKED[:-1],
        PACKED[:-4],
        PACKED + b"\0",
        b"",
        b"\1\0\0",
        _pack(b"good"),
        _pack(b"good", b"bad", b"x"),
        _pack(b"good", b"\xff\xfe"),
        _pack(b"good", b""),
        _pack(b"good", b"b\0d"),
        b"\xff\xff\xff\xff" + b"good",
        b"good, bad",
    ],
    ids=str,
)
async def test_bytes_that_are_no_texts_are_refused(platform: Platform, tail: bytes) -> None:
    content, headers = _binary(tail)
    answer = await _post(platform, content, **headers)
    assert (answer.status_code, set(answer.json())) == (422, {"error"})
    assert platform.store is not None
    assert not platform.store.texts


@pytest.mark.parametrize("size", [0, 1, len(PACKED) - 1, len(PACKED) + 1, -1, 2.5, "15", True])
async def test_a_binary_size_that_isnt_that_of_the_bytes_is_refused(platform: Platform, size: Any) -> None:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    assert (await _post(platform, head + PACKED, **{LENGTH: str(len(head))})).status_code == 422


async def test_texts_come_in_one_form_only(platform: Platform) -> None:
    both = TENSOR | {"parameters": {"binary_data_size": len(PACKED)}}
    for tensor in (both, TENSOR):
        head = json.dumps({"inputs": [tensor]}).encode()
        assert (await _post(platform, head + PACKED, **{LENGTH: str(len(head))})).status_code == 422


async def test_binary_texts_may_be_base64_too(platform: Platform) -> None:
    tail = _pack(base64.b64encode(b"good"), base64.b64encode(b"bad"))
    tensor = {
        "name": "text",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail), "content_type": "base64"},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    assert _labels(await _post(platform, head + tail, **{LENGTH: str(len(head))})) == ["positive", "negative"]


async def test_more_texts_than_a_request_may_hold_are_413_in_binary_too(platform: Platform) -> None:
    tail = _pack(*[b"good"] * 1001)
    tensor = {
        "name": "text",
        "shape": [1001],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    many = await _post(platform, head + tail, **{LENGTH: str(len(head))})
    empty = await _post(
        platform,
        (head := json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 400_000}}]}).encode())
        + b"\0" * 400_000,
        **{LENGTH: str(len(head))},
    )
    assert [each.status_code for each in (many, empty)] == [413, 413]


def _unpack(answer: httpx.Response) -> dict[str, Any]:
    """Return the outputs of an answer by name, as the protocol says how to read them."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    head, tail = json.loads(answer.content[:length]), answer.content[length:]
    values: dict[str, Any] = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values[output["name"]] = output["data"]
            continue
        assert "data" not in output
        raw, tail = tail[:size], tail[size:]
        assert len(raw) == size
        if output["datatype"] == "BYTES":
            elements = []
            while raw:
                (count,) = struct.unpack_from("<I", raw)
                elements.append(raw[4 : 4 + count].decode())
                raw = raw[4 + count :]
            values[output["name"]] = elements
        else:
            kind = {"FP32": "<f4", "BOOL": "?"}[output["datatype"]]
            values[output["name"]] = np.frombuffer(raw, kind).reshape(output["shape"])
    assert not tail
    return values


async def test_all_outputs_come_as_binary_tensors_if_asked(platform: Platform) -> None:
    content, headers = _binary(PACKED, parameters={"binary_data_output": True}, id="7")
    answer = await _post(platform, content, **headers)
    values = _unpack(answer)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert values["label"] == ["positive", "negative"]
    assert values["score"] == pytest.approx([0.8, 0.8])
    assert values["probabilities"].shape == (2, 3)
    assert [str(UUID(each)) for each in values["prediction_id"]] == values["prediction_id"]
    assert json.loads(answer.content[: int(answer.headers[LENGTH])])["id"] == "7"


async def test_single_outputs_come_as_binary_tensors_if_asked(platform: Platform) -> None:
    answer = await _infer(
        platform,
        {},
        outputs=[
            {"name": "embedding", "parameters": {"binary_data": True}},
            {"name": "label"},
            {"name": "truncated", "parameters": {"binary_data": True}},
        ],
    )
    values = _unpack(answer)
    assert list(values) == ["embedding", "label", "truncated"]
    assert values["label"] == ["positive", "negative"]
    assert np.linalg.norm(values["embedding"], axis=1) == pytest.approx(1, abs=1e-3)
    assert values["truncated"].tolist() == [False, False]


async def test_an_output_says_for_itself_whether_it_is_binary(platform: Platform) -> None:
    answer = await _infer(
        platform,
        {},
        parameters={"binary_data_output": True},
        outputs=[{"name": "score"}, {"name": "label", "parameters": {"binary_data": False}}],
    )
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])
    assert ["data" in each for each in head["outputs"]] == [False, True]
    assert _unpack(answer)["label"] == ["positive", "negative"]


async def test_truncation_is_said(platform: Platform) -> None:
    long = "good " * 600
    plain = await _infer(platform, {})
    cut = await _infer(platform, {"data": ["good", long]})
    which = await _infer(platform, {"data": ["good", long]}, outputs=[{"name": "truncated"}])
    assert "parameters" not in plain.json()
    assert cut.json()["parameters"] == {"truncated": True}
    assert which.json()["outputs"] == [
        {"name": "truncated", "datatype": "BOOL", "shape": [2], "data": [False, True]}
    ]


async def test_a_text_that_the_version_does_not_know_is_said(platform: Platform) -> None:
    outputs = [{"name": "language"}, {"name": "supported"}]
    answer = await _infer(platform, {"data": ["good", "das ist gut"]}, outputs=outputs)
    assert answer.json()["parameters"] == {"unsupported": True}
    assert answer.json()["outputs"] == [
        {"name": "language", "datatype": "BYTES", "shape": [2], "data": ["en", "de"]},
        {"name": "supported", "datatype": "BOOL", "shape": [2], "data": [True, False]},
    ]


async def test_an_unknown_output_is_refused(platform: Platform) -> None:
    answer = await _infer(platform, {}, outputs=[{"name": "logits"}])
    assert answer.status_code == 422
    assert "outputs.0.name" in answer.json()["error"]


async def test_parameters_name_user_and_unit(platform: Platform) -> None:
    unknown = await _infer(platform, {}, parameters={"user_id": "00000000-0000-4000-8000-000000000000"})
    malformed = await _infer(platform, {}, parameters={"user_id": "x"})
    unit = await _infer(platform, {}, parameters={"unit": "a", "user_id": None})
    assert [each.status_code for each in (unknown, malformed, unit)] == [422, 422, 200]
    assert "no user" in unknown.json()["error"]


async def test_metadata_say_what_is_spoken(platform: Platform) -> None:
    async with platform.client() as client:
        server, slash = (await client.get("/v2")).json(), (await client.get("/v2/")).json()
        model = (await client.get("/v2/models/sentiment")).json()
    assert server == slash == {"name": "valence", "version": "0", "extensions": ["binary_tensor_data"]}
    on_request = {each["name"] for each in model["outputs"] if "parameters" in each}
    assert on_request == {"embedding", "truncated", "language", "supported"}
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


async def test_the_slash_needs_a_key_too(platform: Platform) -> None:
    async with platform.client(None) as client:
        assert [(await client.get(path)).status_code for path in ("/v2", "/v2/")] == [401, 401]
