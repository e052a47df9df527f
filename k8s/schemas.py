"""Check the form of resources: core kinds, RayService, and Ray Serve's configuration."""

import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from k8s.rendered import Resource, named, of_kind, templates

CRD_VARIABLE = "KUBERAY_CRD_DIR"
CRD_FILE = "ray.io_rayservices.yaml"
# Kinds of operators, whose schemas aren't at hand.
UNCHECKED = frozenset(
    {
        *("Cluster", "Database", "ObjectStore", "ScheduledBackup"),
        *("Gateway", "HTTPRoute", "PodMonitor", "PrometheusRule"),
    }
)
_BY_CRD = "RayService"


def core_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield everything that Kubernetes would refuse in its own kinds, unknown keys and nested pods included."""
    for resource in resources:
        if resource["kind"] in UNCHECKED:
            continue
        if resource["kind"] != _BY_CRD:
            yield from _core(named(resource), resource)
            continue
        for name, template in templates(resource):
            metadata = {"name": "pod"} | template["metadata"]
            yield from _core(
                name, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            )


def ray_faults(resources: list[Resource], definition: Path) -> Iterator[str]:
    """Yield everything that the operator's definition would refuse in a RayService, unknown keys included."""
    versions = _versions(definition / CRD_FILE)
    for resource in of_kind(resources, _BY_CRD):
        version = resource["apiVersion"].partition("/")[2]
        if version not in versions:
            yield f"{named(resource)}: there is no {resource['apiVersion']}"
            continue
        given = copy.deepcopy(resource)
        _default(given, versions[version])
        validator = jsonschema.Draft7Validator(_closed(versions[version]))
        for error in validator.iter_errors(given):
            yield f"{named(resource)}: {error.json_path}: {error.message[:200]}"


def crd_folder() -> Path | None:
    """Return the folder of the operator's definition, if the environment names one."""
    named_folder = os.environ.get(CRD_VARIABLE)
    return Path(named_folder) if named_folder else None


def serve_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield everything in its configuration that Ray Serve would refuse or silently ignore."""
    from ray.serve.schema import ServeDeploySchema

    for resource in of_kind(resources, _BY_CRD):
        given = yaml.safe_load(resource["spec"]["serveConfigV2"])
        try:
            understood = ServeDeploySchema.model_validate(given)
        except ValueError as error:
            yield f"{named(resource)}: serveConfigV2: {error}"
            continue
        for path in _ignored(given, understood.model_dump(exclude_unset=True, mode="json")):
            yield f"{named(resource)}: serveConfigV2: {path} is unknown"


@cache
def _versions(path: Path) -> dict[str, dict[str, Any]]:
    """Return the schema of each version; cached, because the file is long."""
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return {version["name"]: version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"]}


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
