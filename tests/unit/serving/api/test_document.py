"""The OpenAPI document and its page: what generators of clients, linters and readers need of them.

`tests/clients` runs the generators themselves.
"""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urljoin

import jsonschema
import pytest

from serving.api.errors import PROBLEM_TYPES
from serving.api.security import GuardedRoute
from tests.support.app import Platform, fake_platform
from tests.support.surface import ROOT, document

pytestmark = pytest.mark.anyio

DOCUMENT = document()
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
SCHEMAS: dict[str, dict[str, Any]] = DOCUMENT["components"]["schemas"]


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


def _nodes(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of the document with its place, except for examples."""
    if isinstance(node, list):
        for index, each in enumerate(node):
            yield from _nodes(each, f"{place}/{index}")
    elif isinstance(node, dict):
        yield place, node
        for name, each in node.items():
            if name not in ("example", "examples"):
                yield from _nodes(each, f"{place}/{name}")


def _members(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, each in _nodes(node):
        if isinstance(each.get("properties"), dict):
            for name, member in each["properties"].items():
                yield f"{place}/{name}", member


def _resolve(reference: str) -> dict[str, Any]:
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_an_operation_s_id_is_a_function_s_name() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert [each for each in ids if not re.fullmatch(r"[a-z]+(_[a-z]+){0,2}", each)] == []
    assert OPERATIONS["POST /v1/predict"]["operationId"] == "predict"


def test_names_of_schemas_have_no_module_in_them() -> None:
    assert [name for name in SCHEMAS if not re.fullmatch(r"[A-Z][A-Za-z]+", name)] == []


def test_generators_understand_every_schema() -> None:
    for place, node in _nodes(DOCUMENT):
        if node.get("type") == "array":
            assert "items" in node, place
        # A false constant and an empty default are what openapi-python-client writes wrongly.
        assert node.get("const") is not False, place
        # It takes an object with alternatives for one of them, without the object's members.
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            assert not {"anyOf", "oneOf"} & set(node), place


def test_no_member_has_a_default_which_would_make_it_required_in_typescript() -> None:
    assert [place for place, member in _members(SCHEMAS) if "default" in member] == []


def test_a_default_of_a_request_is_told_in_words() -> None:
    assert SCHEMAS["SimilarRequest"]["properties"]["k"]["description"] == "default: 10"
    explain = SCHEMAS["PredictRequest"]["properties"]["explain"]["description"]
    assert explain.endswith("; default: false")


def test_every_parameter_is_described_and_none_may_be_null() -> None:
    for name, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (name, parameter["name"])
            assert {"type": "null"} not in parameter["schema"].get("anyOf", ()), (name, parameter["name"])
            if parameter["in"] == "path":
                assert (parameter["required"], parameter["schema"]["type"]) == (True, "string"), name


def test_every_path_parameter_of_the_template_is_described() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path)), path


def test_every_reference_leads_somewhere() -> None:
    references = [node["$ref"] for _, node in _nodes(DOCUMENT) if isinstance(node.get("$ref"), str)]
    examples = [
        each["$ref"]
        for operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
        for each in content.get("examples", {}).values()
    ]
    assert references
    assert examples
    for reference in references + examples:
        _resolve(reference)


async def test_public_routes_say_so_and_others_name_their_role(platform: Platform) -> None:
    for route in platform.app.routes:
        if isinstance(route, GuardedRoute) and route.include_in_schema:
            for method in route.methods:
                operation = OPERATIONS[f"{method} {route.path_format}"]
                role = route.access.role
                assert operation["security"] == (
                    [] if role is None else [{"bearer": []}, {"apiKey": []}, {"oauth2": [role.value]}]
                )
                assert ("Needs no credentials" if role is None else f"`{role}`") in operation["description"]


def test_the_token_s_route_is_where_oauth2_says() -> None:
    flow = DOCUMENT["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"]
    below = "https://example.org/prefix/openapi.json"
    assert urljoin(below, flow["tokenUrl"]) == "https://example.org/prefix/v1/token"
    assert set(flow["scopes"]) == {"client", "engineer", "admin"}


def test_the_server_is_where_the_document_is() -> None:
    (server,) = DOCUMENT["servers"]
    assert urljoin("https://example.org/prefix/openapi.json", server["url"]) == "https://example.org/prefix/"


def test_summaries_are_sentences_and_tags_are_described() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    for name, operation in OPERATIONS.items():
        assert re.fullmatch(r"[A-Z][^.]+ [^.]*[^.]", operation["summary"]), name
        assert set(operation["tags"]) <= described, name
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == described


def test_every_operation_may_answer_500() -> None:
    assert [name for name, operation in OPERATIONS.items() if "500" not in operation["responses"]] == []


def test_examples_of_requests_fit_their_schemas() -> None:
    checked = 0
    for name, operation in OPERATIONS.items():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schema = _resolve(content["schema"]["$ref"])
            named = [each["value"] for each in content.get("examples", {}).values()]
            for example in named + schema.get("examples", []):
                jsonschema.validate(example, {**schema, "components": DOCUMENT["components"]})
                checked += 1
            assert (
                named
                or schema.get("examples")
                or name == "POST /v1/experiments/{experiment_id}/stop"
                or (name == "POST /v1/token")
            ), name
    assert checked > 20
    assert set(OPERATIONS["POST /v1/similar"]["requestBody"]["content"]["application/json"]["examples"]) >= {
        "with_filters", "with_keywords", "by_examples", "by_keywords",
    }  # fmt: skip


def test_each_problem_has_an_example_and_stands_in_the_docs() -> None:
    examples = DOCUMENT["components"]["examples"]
    page = (ROOT / "docs" / "api.md").read_text()
    for kind in PROBLEM_TYPES:
        assert f"`{kind.name}`" in page, kind.name
        if kind.status != 405:
            value = examples[kind.name]["value"]
            jsonschema.validate(value, {**SCHEMAS["ProblemDetails"], "components": DOCUMENT["components"]})
            assert (value["type"], value["status"]) == (f"urn:valence:problem:{kind.name}", kind.status)


async def test_the_document_is_built_once_beside_the_event_loop(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[threading.Thread] = []

    def build() -> dict[str, Any]:
        built.append(threading.current_thread())
        return DOCUMENT

    monkeypatch.setattr(platform.app, "openapi", build)
    async with platform.client(None) as client:
        answers = await asyncio.gather(*(client.get("/openapi.json") for _ in range(3)))
    assert [answer.json() == DOCUMENT for answer in answers] == [True] * 3
    assert len(built) == 1
    assert built[0] is not threading.current_thread()


@pytest.mark.parametrize("prefix", ["", "/below/a/prefix"])
async def test_the_page_loads_only_what_this_machine_has_below_any_prefix(
    platform: Platform, prefix: str
) -> None:
    async with platform.client(None) as client:
        page = await client.get("/docs")
        script = await client.get("/docs/page.js")
        addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text) + re.findall(
            r'url: "([^"]+)"', script.text
        )
        assert len(addresses) == 5
        for address in addresses:
            path = urljoin(f"http://valence{prefix}/docs", address).removeprefix(f"http://valence{prefix}")
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/docs/core.py")).status_code in {404, 422}
    assert '<html lang="en">' in page.text
