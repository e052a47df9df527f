"""The OpenAPI document: FastAPI's document of the routes, completed from their declarations.

Written so that generators of clients read it as it comes: nothing in it needs more than the words that they all know.
"""

from collections.abc import Iterator
from typing import Any, Final

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serving.api.dependencies import Json
from serving.api.errors import ERROR_BODIES, build_examples
from serving.api.schemas.fields import NAMED_EXAMPLES
from serving.api.security import GuardedRoute
from serving.core.caller import Role

_REFERENCE: Final = "#/components/schemas/{model}"
_DESCRIPTION: Final = """\
Versioned sentiment models behind one URL, with a memory.

**Credentials**: `Authorization: Bearer …` or `X-API-Key: …`, with an API key or a token from `POST /v1/token`. A key
has a role, and each role includes the ones before it: `client` predicts, searches and gives feedback, and sees what its
owner sent; `engineer` also sees everyone's predictions, and runs models and experiments; `admin` also manages users
and keys.

**Errors** are problem documents (RFC 9457); `detail` says in words what is wrong. Under `/v2`, `/v1/embeddings` and
`/v1/token` they have the form of those protocols. After a 429 or 503, send the same request again when `Retry-After`
says so. With an `Idempotency-Key`, a repeated request is answered once.

**Times** in requests are RFC 3339 (`2026-01-31T12:00:00Z`), dates (`2026-01-31`, its midnight in UTC), ages (`24h`,
`7d`), or `now`, `today` and `yesterday`.

The [console](console) does most of this in a browser.
"""
_TAGS: Final = {
    "predictions": "Predict the sentiment of texts, and read what was predicted.",
    "feedback": "Say whether a prediction was right.",
    "similar": "Search stored texts by meaning, by examples and by words.",
    "insights": "Analyse many predictions: topics, drift, differences of versions, what to judge next.",
    "embeddings": "Embed texts, as OpenAI does.",
    "open inference protocol": "Predict by the Open Inference Protocol, version 2.",
    "models": "Versions of models: evaluate them, make one champion, take that back.",
    "experiments": "Try a version beside the champion.",
    "spaces": "Embedding spaces: build another one, and switch to it.",
    "erasure": "Erase what is stored of a user, or a text.",
    "users": "Users, whom predictions belong to.",
    "keys": "API keys, and tokens made from them.",
    "audit": "Who did what.",
    "health": "Whether the platform runs and is ready, and its metrics.",
}
_PARAMETERS: Final = {
    "action": "what was done, such as `key.create`",
    "actor": "the id of the key that asked for it",
    "arm": "how the answer was routed",
    "at": "the moment to look at; default: now",
    "clusters": "the most clusters",
    "cursor": "`next_cursor` of the page before; none: the first page",
    "experiment_id": "the experiment's id",
    "from": "the first version",
    "has_feedback": "with feedback, or without it",
    "k": "the most results",
    "key_id": "the key's id",
    "limit": "the most results",
    "min_similarity": "the lowest cosine that counts",
    "model": "the model's name; default: every model, or the platform's own",
    "model_version": "the version that predicted",
    "name": "the name of the model or of the space",
    "now": "the sentiment that the second version predicts; default: any other",
    "prediction_id": "the prediction's id",
    "reference_since": "the start of the reference, inclusive",
    "reference_until": "the end of the reference, exclusive",
    "sentiment": "the sentiment that was predicted",
    "since": "the start, inclusive",
    "subject": "the id or name of what it was done to",
    "text_id": "the text's id",
    "to": "the second version",
    "topics": "the most topics",
    "until": "the end, exclusive; default: now",
    "user_id": "the user's id",
    "version": "the version's number",
    "was": "the sentiment that the first version predicts; default: any",
}
_SECURITY: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a token from /v1/token"},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "an API key, or a token",
    },
    "oauth2": {
        "type": "oauth2",
        "description": "client credentials: a key's id and the key",
        "flows": {
            "clientCredentials": {
                "tokenUrl": "v1/token",
                "scopes": {role.value: f"what a key of the role {role} may do" for role in Role},
            }
        },
    },
}


def build_document(app: FastAPI) -> Json:
    """Build the whole document."""
    routes = [route for route in app.routes if isinstance(route, GuardedRoute)]
    content = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_DESCRIPTION,
        license_info=app.license_info,
        # Relative to the document, so that it holds below any path prefix.
        servers=[{"url": ".", "description": "this platform"}],
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        routes=routes,
    )
    schemas = content["components"]["schemas"]
    schemas.update(_body_schemas(routes))
    examples = {
        name: schema.pop(NAMED_EXAMPLES) for name, schema in schemas.items() if NAMED_EXAMPLES in schema
    }
    content["components"]["securitySchemes"] = _SECURITY
    content["components"]["examples"] = build_examples()
    for route in routes:
        if route.include_in_schema:
            for method in route.methods or ():
                _complete(content["paths"][route.path_format][method.lower()], route, examples)
    for schema in _find_schemas(content):
        schema.pop("default", None)
        schema.pop("title", None)
    return content


def _body_schemas(routes: list[GuardedRoute]) -> dict[str, Json]:
    """Return the schemas of requests, which say their defaults in words, and of errors."""
    bodies = {route.access.body for route in routes if route.access.body is not None}
    _, requests = models_json_schema(
        [(shape, "validation") for shape in sorted(bodies, key=lambda shape: shape.__name__)],
        ref_template=_REFERENCE,
    )
    _, errors = models_json_schema(
        [(shape, "serialization") for shape in ERROR_BODIES], ref_template=_REFERENCE
    )
    for schema in requests["$defs"].values():
        for member in schema.get("properties", {}).values():
            _describe_default(member)
    return {**requests["$defs"], **errors["$defs"]}


def _describe_default(member: Json) -> None:
    """Say a default in the description: generators of types take a member that has one as always present."""
    default = member.get("default")
    if default is None or default == [] or isinstance(default, dict):
        return
    text = f"default: {orjson.dumps(default).decode()}"
    member["description"] = f"{member['description']}; {text}" if "description" in member else text


def _complete(operation: Json, route: GuardedRoute, examples: dict[str, Json]) -> None:
    """Add the body, the credentials, and the docstring as summary and description."""
    access = route.access
    if access.body is not None:
        name = access.body.__name__
        body: Json = {"schema": {"$ref": _REFERENCE.format(model=name)}}
        if name in examples:
            body["examples"] = examples[name]
        operation["requestBody"] = {"required": not access.optional, "content": {access.media_type: body}}
    operation["security"] = []
    needs = "Needs no credentials."
    if access.role is not None:
        operation["security"] = [{"bearer": []}, {"apiKey": []}, {"oauth2": [access.role.value]}]
        needs = f"Needs the role `{access.role}`."
    summary, _, details = operation.pop("description").partition("\n\n")
    operation["summary"] = " ".join(summary.split()).rstrip(".")
    operation["description"] = f"{details}\n\n{needs}".strip()
    for parameter in operation.get("parameters", ()):
        _complete_parameter(parameter)


def _complete_parameter(parameter: Json) -> None:
    """Describe a parameter, and leave `null` out of its schema: a path or a query can't hold it."""
    schema: Json = parameter["schema"]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        parameter["schema"] = kinds[0]
    elif kinds:
        schema["anyOf"] = kinds
    parameter["schema"].pop("title", None)
    if parameter["in"] != "header":
        parameter["description"] = _PARAMETERS[parameter["name"]]


def _find_schemas(node: Any) -> Iterator[Json]:
    """Yield the schema of every member of every object, at any depth."""
    if isinstance(node, list):
        for each in node:
            yield from _find_schemas(each)
    elif isinstance(node, dict):
        for name, each in node.items():
            if name == "properties" and isinstance(each, dict):
                yield from each.values()
            yield from _find_schemas(each)
