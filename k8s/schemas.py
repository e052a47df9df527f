"""Check the form of resources: core kinds, operators' kinds, and Ray Serve's configuration."""

import copy
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import kubernetes_validate
import yaml

from k8s.rendered import Resource, named, of_kind, templates

CRD_VARIABLE = "VALENCE_CRD_DIRS"
# Beside a checkout, in the workplace of Valence's own developers.
_BESIDE = tuple(Path(__file__).parents[2] / "shared" / name for name in ("crds", "kuberay"))
_RAY = "RayService"
OPERATED = frozenset(
    {
        *("Cluster", "Database", "ObjectStore", "ScheduledBackup"),
        *("Gateway", "HTTPRoute", "PodMonitor", "PrometheusRule", _RAY),
    }
)
"""The kinds of operators, each checked against its operator's own definition where there is one at hand."""

Definitions: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The schema of each `apiVersion` of each kind."""


def core_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield everything that Kubernetes would refuse in its own kinds, unknown keys and nested pods included."""
    for resource in resources:
        if resource["kind"] not in OPERATED:
            yield from _core(named(resource), resource)
        elif resource["kind"] == _RAY:
            for name, template in templates(resource):
                metadata = {"name": "pod"} | template["metadata"]
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
                yield from _core(name, pod)


def operated_faults(resources: list[Resource], definitions: Definitions) -> Iterator[str]:
    """Yield everything that operators' definitions would refuse in resources of their kinds, unknown keys included.

    A kind without a definition isn't checked. Rules in CEL aren't evaluated.
    """
    for resource in resources:
        versions = definitions.get(resource["kind"])
        if versions is None or resource["kind"] not in OPERATED:
            continue
        schema = versions.get(resource["apiVersion"])
        if schema is None:
            yield f"{named(resource)}: there is no {resource['apiVersion']}"
            continue
        given = copy.deepcopy(resource)
        _default(given, schema)
        for error in jsonschema.Draft7Validator(_closed(schema)).iter_errors(given):
            yield f"{named(resource)}: {error.json_path}: {error.message[:200]}"


def read_definitions() -> Definitions:
    """Return the operators' definitions in the folders that the environment names, or that lie beside the checkout."""
    folders = [Path(each) for each in os.environ.get(CRD_VARIABLE, "").split(os.pathsep) if each] or _BESIDE
    definitions: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            definitions |= _read(file)
    return definitions


def unchecked_kinds(resources: list[Resource], definitions: Definitions) -> list[str]:
    """Return the kinds of operators that no definition at hand describes."""
    return sorted({resource["kind"] for resource in resources} & OPERATED - definitions.keys())


def serve_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield everything in its configuration that Ray Serve would refuse or silently ignore."""
    from ray.serve.schema import ServeDeploySchema

    for resource in of_kind(resources, _RAY):
        given = yaml.safe_load(resource["spec"]["serveConfigV2"])
        try:
            understood = ServeDeploySchema.model_validate(given)
        except ValueError as error:
            yield f"{named(resource)}: serveConfigV2: {error}"
            continue
        for path in _ignored(given, understood.model_dump(exclude_unset=True, mode="json")):
            yield f"{named(resource)}: serveConfigV2: {path} is unknown"


@cache
def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the schemas of a definition's kind by `apiVersion`; cached, because such files are long."""
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]
    return {
        crd["names"]["kind"]: {
            f"{crd['group']}/{version['name']}": version["schema"]["openAPIV3Schema"]
            for version in crd["versions"]
        }
    }


def _core(name: str, resource: Resource) -> Iterator[str]:
    try:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield f"{name}: {getattr(error, 'message', str(error))[:300]}"


def _closed(schema: Any) -> Any:
    """Return the schema with unknown keys refused."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if (
        isinstance(schema.get("properties"), dict)
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
        and schema.get("type") == "object"
    ):
        closed["additionalProperties"] = False
    return closed


def _default(value: Any, schema: dict[str, Any]) -> None:
    """Apply the schema's defaults in place, as the API server does."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                _default(value[name], part)
    elif isinstance(value, list):
        for each in value:
            _default(each, schema.get("items", {}))


def _ignored(given: Any, understood: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(understood, dict):
        for key, value in given.items():
            if key not in understood:
                yield f"{path}{key}"
            else:
                yield from _ignored(value, understood[key], f"{path}{key}.")
    elif isinstance(given, list) and isinstance(understood, list):
        for number, (value, known) in enumerate(zip(given, understood, strict=False)):
            yield from _ignored(value, known, f"{path}{number}.")
