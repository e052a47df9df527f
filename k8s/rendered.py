"""A rendered overlay: the resources that kubectl would send, and the pods that would result."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
OVERLAYS = ("local", "production", "gpu")

Resource = dict[str, Any]


class Unrenderable(Exception):
    """kubectl can't render the overlay; the message is kubectl's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod that would be created: its name here, its labels, its ports by number and name.

    `spec` is None, and `ports` may be, for pods that an operator creates by itself.
    """

    name: str
    labels: Mapping[str, str]
    ports: frozenset[int | str] | None = None
    spec: Mapping[str, Any] | None = None

    def matches(self, selector: Mapping[str, Any]) -> bool:
        """Whether a label selector matches."""
        wanted = selector.get("matchLabels", {})
        if any(self.labels.get(name) != value for name, value in wanted.items()):
            return False
        for expression in selector.get("matchExpressions", []):
            found, values = self.labels.get(expression["key"]), expression.get("values", [])
            chosen = {
                "In": found in values,
                "NotIn": found not in values,
                "Exists": found is not None,
                "DoesNotExist": found is None,
            }
            if not chosen[expression["operator"]]:
                return False
        return True


def render(overlay: str) -> list[Resource]:
    """Return the resources of an overlay. Raises Unrenderable."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl"), "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unrenderable(done.stderr.strip())
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def named(resource: Resource) -> str:
    """`Kind/name`."""
    return f"{resource['kind']}/{resource['metadata']['name']}"


def of_kind(resources: list[Resource], kind: str) -> list[Resource]:
    """Return the resources of one kind."""
    return [resource for resource in resources if resource["kind"] == kind]


def templates(resource: Resource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the pod templates in a resource, each with a name."""
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            yield named(resource), spec["template"]
        case "CronJob":
            yield named(resource), spec["jobTemplate"]["spec"]["template"]
        case "RayService":
            cluster = spec["rayClusterConfig"]
            yield f"{named(resource)} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{named(resource)} {group['groupName']}", group["template"]


def pods(resources: list[Resource]) -> list[Pod]:
    """Return every pod that these resources lead to, by our own templates and by the known operators."""
    found = [
        Pod(
            name=name,
            labels=template["metadata"].get("labels", {}),
            ports=frozenset(_ports(template["spec"])),
            spec=template["spec"],
        )
        for resource in resources
        for name, template in templates(resource)
    ]
    for cluster in of_kind(resources, "Cluster"):
        inherited = cluster["spec"].get("inheritedMetadata", {}).get("labels", {})
        found.append(
            Pod(
                name=named(cluster),
                labels=inherited | {"cnpg.io/cluster": cluster["metadata"]["name"]},
                ports=frozenset({5432, "postgresql", 9187, "metrics", 8000, "status"}),
            )
        )
    found += [
        Pod(name=name, labels={"gateway.networking.k8s.io/gateway-name": name})
        for name in gateways(resources)
    ]
    return found


def gateways(resources: list[Resource]) -> list[str]:
    """Return the gateways: ours, and the one that KubeRay creates for an incremental upgrade."""
    ours = [resource["metadata"]["name"] for resource in of_kind(resources, "Gateway")]
    theirs = [
        f"{resource['metadata']['name']}-gateway"
        for resource in of_kind(resources, "RayService")
        if resource["spec"].get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade"
    ]
    return ours + theirs


def containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the containers of a pod, init containers first."""
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def settings_of(resources: list[Resource], container: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that a container gets from ConfigMaps and literals, without secrets."""
    maps = {each["metadata"]["name"]: each.get("data", {}) for each in of_kind(resources, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def _ports(spec: Mapping[str, Any]) -> Iterator[int | str]:
    for container in spec.get("containers", []):
        for port in container.get("ports", []):
            yield port["containerPort"]
            if "name" in port:
                yield port["name"]
