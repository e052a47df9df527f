"""Check every pod against the restricted Pod Security Standard and the project's own rules.

Own rules: a read-only root file system, requests for resources, secrets by reference, every pod under a policy that
denies, and the environment of Ray that serving/deployments/cluster.py builds.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from k8s.rendered import Resource, containers, named, of_kind, settings_of, templates

_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN$|_KEY$|^DATABASE_(READ_|DIRECT_)?URL$")
_EXPANDED = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_HOST = ("hostNetwork", "hostPID", "hostIPC")
# On one machine these are files in its home and ports that are free; in a pod they are fixed.
_PLACES = re.compile(r"_(?:PATH|LOC|BASE|FILE|PORT)$|^VALENCE_HAPROXY_BIND$")


def security_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield every break of the rules."""
    for resource in resources:
        for name, template in templates(resource):
            spec = template["spec"]
            yield from _pod(name, spec)
            for container in containers(spec):
                yield from _container(f"{name}: {container['name']}", container, spec)
        if resource["kind"] == "RayService":
            context = (
                resource["spec"]["rayClusterConfig"].get("autoscalerOptions", {}).get("securityContext", {})
            )
            yield from _context(f"{named(resource)}: autoscaler", context)
    if not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
        for policy in of_kind(resources, "NetworkPolicy")
    ):
        yield "no NetworkPolicy denies everything"


def secret_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield secrets that are rendered and should be created apart."""
    for secret in of_kind(resources, "Secret"):
        yield f"{named(secret)}: secrets are made apart, not rendered"


def environment_faults(resources: list[Resource]) -> Iterator[str]:
    """Compare the environment of each Ray pod with what `build_environment` gives for the same settings."""
    from serving.deployments.cluster import build_environment, uses_haproxy
    from serving.settings import Settings

    for resource in of_kind(resources, "RayService"):
        for name, template in templates(resource):
            found = settings_of(resources, template["spec"]["containers"][0])
            fields = {
                field.removeprefix("VALENCE_").lower(): value
                for field, value in found.items()
                if field.removeprefix("VALENCE_").lower() in Settings.model_fields
                and field.startswith("VALENCE_")
            }
            settings = Settings(**fields | {"ray_address": "auto", "home": Path("/nonexistent")})
            # The pods' own Ray, which nobody joins.
            wanted = build_environment(settings, haproxy=uses_haproxy(settings))
            for variable, value in wanted.items():
                if variable not in found:
                    yield f"{name}: {variable} is not set"
                elif found[variable] != value and not _PLACES.search(variable):
                    yield f"{name}: {variable} is {found[variable]!r}, not {value!r}"


def _pod(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    for key in _HOST:
        if spec.get(key):
            yield f"{name}: {key}"
    if spec.get("securityContext", {}).get("sysctls"):
        yield f"{name}: sysctls"
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - _VOLUMES:
            yield f"{name}: a volume of kind {', '.join(sorted(kinds))}"


def _container(name: str, container: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    own, pod = container.get("securityContext", {}), spec.get("securityContext", {})
    yield from _context(name, own)
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name}: may run as root"
    if own.get("runAsUser", pod.get("runAsUser")) in (None, 0):
        yield f"{name}: has no user of its own"
    seccomp = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if seccomp not in ("RuntimeDefault", "Localhost"):
        yield f"{name}: no seccomp profile"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get(
        "limits", {}
    ):
        yield f"{name}: asks for no CPU or memory, or has no limit of memory"
    for port in container.get("ports", []):
        if "hostPort" in port:
            yield f"{name}: a port of the host"
    hidden = {
        each["name"] for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})
    }
    for argument in [*container.get("command", []), *container.get("args", [])]:
        # Kubernetes puts the value in its place; a shell that reads the variable does not.
        for variable in hidden & set(_EXPANDED.findall(argument)):
            yield f"{name}: the secret {variable} stands in its arguments"
    for variable in container.get("env", []):
        if "value" in variable and _SECRET_NAME.search(variable["name"]):
            yield f"{name}: {variable['name']} stands in the manifest"


def _context(name: str, context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("privileged"):
        yield f"{name}: privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: may write to the root file system"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name}: keeps capabilities"
    if context.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
