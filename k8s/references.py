"""Check that everything a resource names exists: secrets and their keys, volumes, ports, services, labels.

Resources that others create are listed here; k8s/README.md says who creates them and how.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from k8s.rendered import (
    Pod,
    Resource,
    containers,
    gateways,
    named,
    of_kind,
    pods,
    settings_of,
    templates,
)

# By name, with their keys: made by hand as the README says, or by CloudNativePG (the one ending in -app).
SECRETS_OF_OTHERS: Mapping[str, frozenset[str]] = {
    "valence": frozenset(
        {"installation-key", "token-keys", "admin.key", "auth_token", "redis-password", "text-keys"}
    ),
    "valence-metrics": frozenset({"key"}),
    "valence-mlflow-database": frozenset({"username", "password"}),
    "valence-object-storage": frozenset({"artifacts", "endpoint", "access-key-id", "secret-access-key"}),
    "valence-tls": frozenset({"tls.crt", "tls.key"}),
}
_OF_CLUSTER = frozenset({"uri", "host", "port", "username", "password", "dbname"})
_SECRET_WITH_KEY = frozenset({"secretKeyRef", "credentials", "accessKeyId", "secretAccessKey"})
_HOST = re.compile(r"^(?:https?|redis)://([a-z0-9.-]+):(\d+)$")


def reference_faults(resources: list[Resource]) -> Iterator[str]:
    """Yield every name of something that doesn't exist."""
    yield from _secrets(resources)
    yield from _config_maps_and_volumes(resources)
    yield from _service_accounts(resources)
    yield from _ports(resources)
    yield from _selectors(resources)
    yield from _policies(resources)
    yield from _routes(resources)
    yield from _addresses(resources)
    yield from _of_the_database(resources)


def secrets_of_others(resources: list[Resource]) -> dict[str, frozenset[str]]:
    """Return the secrets that are created elsewhere, with their keys."""
    made = {f"{each['metadata']['name']}-app": _OF_CLUSTER for each in of_kind(resources, "Cluster")}
    return {**SECRETS_OF_OTHERS, **made}


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping within a value, with its key."""
    if isinstance(value, dict):
        yield key, value
        for name, part in value.items():
            yield from _walk(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part, key)


def _secrets(resources: list[Resource]) -> Iterator[str]:
    there = secrets_of_others(resources)
    for secret in of_kind(resources, "Secret"):
        there[secret["metadata"]["name"]] = frozenset(secret.get("data", {}) | secret.get("stringData", {}))
    for resource in resources:
        for key, part in _walk(resource):
            wanted: list[tuple[str, str | None]] = []
            if key in _SECRET_WITH_KEY:
                wanted = [(part["name"], part.get("key"))]
            elif key == "secretRef" or (key == "certificateRefs" and part.get("kind", "Secret") == "Secret"):
                wanted = [(part["name"], None)]
            elif isinstance(part.get("secretName"), str):
                items = [item["key"] for item in part.get("items", [])]
                wanted = [(part["secretName"], item) for item in items or [None]]
                if key == "authOptions":
                    wanted = [(part["secretName"], "auth_token")]
            for name, item in wanted:
                if name not in there:
                    yield f"{named(resource)}: there is no Secret {name}"
                elif item is not None and item not in there[name] and not part.get("optional"):
                    yield f"{named(resource)}: the Secret {name} has no key {item}"


def _config_maps_and_volumes(resources: list[Resource]) -> Iterator[str]:
    maps = {each["metadata"]["name"] for each in of_kind(resources, "ConfigMap")}
    claims = {each["metadata"]["name"] for each in of_kind(resources, "PersistentVolumeClaim")}
    for resource in resources:
        for key, part in _walk(resource):
            if key in ("configMapRef", "configMapKeyRef", "configMap") and part["name"] not in maps:
                yield f"{named(resource)}: there is no ConfigMap {part['name']}"
            if key == "persistentVolumeClaim" and part["claimName"] not in claims:
                yield f"{named(resource)}: there is no PersistentVolumeClaim {part['claimName']}"
        of_set = {
            each["metadata"]["name"] for each in resource.get("spec", {}).get("volumeClaimTemplates", [])
        }
        for name, template in templates(resource):
            volumes = of_set | {volume["name"] for volume in template["spec"].get("volumes", [])}
            for container in containers(template["spec"]):
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"{name}: {container['name']} mounts {mount['name']}, which is no volume"


def _service_accounts(resources: list[Resource]) -> Iterator[str]:
    there = {"default"} | {each["metadata"]["name"] for each in of_kind(resources, "ServiceAccount")}
    for pod in pods(resources):
        account = (pod.spec or {}).get("serviceAccountName", "default")
        if account not in there:
            yield f"{pod.name}: there is no ServiceAccount {account}"


def _services(resources: list[Resource]) -> dict[str, set[int | str]]:
    """Return every service with its ports: rendered ones, and those of the operators."""
    found: dict[str, set[int | str]] = {}
    for service in of_kind(resources, "Service"):
        ports = found.setdefault(service["metadata"]["name"], set())
        for port in service["spec"]["ports"]:
            ports |= {port["port"], port.get("name", port["port"])}
    for resource in of_kind(resources, "RayService"):
        found[f"{resource['metadata']['name']}-serve-svc"] = {8000, "serve"}
    for cluster in of_kind(resources, "Cluster"):
        for kind in ("rw", "ro", "r"):
            found[f"{cluster['metadata']['name']}-{kind}"] = {5432}
    for gateway in gateways(resources):
        # As Istio names it.
        found[f"{gateway}-istio"] = {80, 443}
    return found


def _ports(resources: list[Resource]) -> Iterator[str]:
    everybody = pods(resources)
    for service in of_kind(resources, "Service"):
        chosen = [pod for pod in everybody if pod.matches({"matchLabels": service["spec"]["selector"]})]
        if not chosen:
            yield f"{named(service)}: it selects no pod"
        for port in service["spec"]["ports"]:
            yield from _missing(named(service), port.get("targetPort", port["port"]), chosen)
    for monitor in of_kind(resources, "PodMonitor"):
        chosen = [pod for pod in everybody if pod.matches(monitor["spec"]["selector"])]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield from _missing(named(monitor), endpoint["port"], chosen)
    for resource in resources:
        for name, template in templates(resource):
            for container in containers(template["spec"]):
                yield from _probes(name, container)


def _missing(who: str, port: int | str, chosen: list[Pod]) -> Iterator[str]:
    for pod in chosen:
        if pod.ports is not None and port not in pod.ports:
            yield f"{who}: {pod.name} has no port {port}"


def _probes(who: str, container: Mapping[str, Any]) -> Iterator[str]:
    there = {port.get("name") for port in container.get("ports", [])}
    there |= {port["containerPort"] for port in container.get("ports", [])}
    for key, part in _walk(container):
        if key in ("httpGet", "tcpSocket") and part["port"] not in there:
            yield f"{who}: a probe of {container['name']} asks port {part['port']}, which it hasn't"


def _selectors(resources: list[Resource]) -> Iterator[str]:
    everybody = pods(resources)
    for resource in resources:
        if resource["kind"] == "Service":
            continue
        for key, part in _walk(resource):
            if key not in ("selector", "labelSelector", "podSelector") or not part:
                continue
            if not any(pod.matches(part) for pod in everybody):
                yield f"{named(resource)}: no pod has the labels {part}"


def _policies(resources: list[Resource]) -> Iterator[str]:
    """Check that a process listens on every port that a policy opens."""
    everybody = pods(resources)
    for policy in of_kind(resources, "NetworkPolicy"):
        spec = policy["spec"]
        chosen = [pod for pod in everybody if pod.matches(spec["podSelector"])]
        rules = [(rule.get("ports", []), chosen) for rule in spec.get("ingress", [])]
        for rule in spec.get("egress", []):
            for peer in rule.get("to", []):
                if "podSelector" in peer:
                    behind = [pod for pod in everybody if pod.matches(peer["podSelector"])]
                    rules.append((rule.get("ports", []), behind))
        for ports, listeners in rules:
            for port in ports:
                known = [pod for pod in listeners if pod.ports is not None]
                if known and not any(port["port"] in (pod.ports or ()) for pod in known):
                    yield f"{named(policy)}: nobody listens on port {port['port']}"


def _routes(resources: list[Resource]) -> Iterator[str]:
    services, known = _services(resources), set(gateways(resources))
    for ingress in of_kind(resources, "Ingress"):
        for key, part in _walk(ingress):
            if key == "service":
                port = part["port"].get("name", part["port"].get("number"))
                yield from _unserved(named(ingress), part["name"], port, services)
    for route in of_kind(resources, "HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            if parent["name"] not in known:
                yield f"{named(route)}: there is no Gateway {parent['name']}"
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield from _unserved(named(route), backend["name"], backend["port"], services)


def _addresses(resources: list[Resource]) -> Iterator[str]:
    """Check that addresses in settings and in options of Ray lead to services."""
    services = _services(resources)
    for resource in resources:
        found = {
            part["redisAddress"]: named(resource) for _, part in _walk(resource) if "redisAddress" in part
        }
        for name, template in templates(resource):
            for container in containers(template["spec"]):
                found |= dict.fromkeys(settings_of(resources, container).values(), name)
        for address, who in found.items():
            if match := _HOST.match(address):
                yield from _unserved(who, match[1], int(match[2]), services)


def _unserved(who: str, name: str, port: int | str, services: Mapping[str, set[int | str]]) -> Iterator[str]:
    if name not in services:
        yield f"{who}: there is no Service {name}"
    elif port not in services[name]:
        yield f"{who}: the Service {name} has no port {port}"


def _of_the_database(resources: list[Resource]) -> Iterator[str]:
    clusters = {each["metadata"]["name"] for each in of_kind(resources, "Cluster")}
    stores = {each["metadata"]["name"] for each in of_kind(resources, "ObjectStore")}
    for resource in resources:
        for key, part in _walk(resource.get("spec", {})):
            if resource["kind"] in ("Database", "ScheduledBackup") and key == "cluster":
                if part["name"] not in clusters:
                    yield f"{named(resource)}: there is no Cluster {part['name']}"
            elif "barmanObjectName" in part and part["barmanObjectName"] not in stores:
                yield f"{named(resource)}: there is no ObjectStore {part['barmanObjectName']}"
