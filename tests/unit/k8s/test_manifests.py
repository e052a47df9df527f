"""The manifests: every overlay passes every check, and each check can fail."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import references, schemas, security
from k8s.check import faults
from k8s.rendered import FOLDER, OVERLAYS, Resource, containers, of_kind, render, settings_of, templates
from serving.api.bodies import LARGE_BODY

Change = Callable[[list[Resource]], None]


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Resource]]:
    return {overlay: render(overlay) for overlay in OVERLAYS}


@pytest.fixture
def local(rendered: dict[str, list[Resource]]) -> list[Resource]:
    return copy.deepcopy(rendered["local"])


@pytest.fixture
def production(rendered: dict[str, list[Resource]]) -> list[Resource]:
    return copy.deepcopy(rendered["production"])


def one(resources: list[Resource], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in of_kind(resources, kind) if each["metadata"]["name"] == name)


def worker(resources: list[Resource]) -> dict[str, Any]:
    group = one(resources, "RayService", "valence")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container


def mlflow(resources: list[Resource]) -> dict[str, Any]:
    spec: dict[str, Any] = one(resources, "Deployment", "valence-mlflow")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_passes_every_check(overlay: str, rendered: dict[str, list[Resource]]) -> None:
    assert faults(overlay, rendered[overlay]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_operators_definition_does_not_know_is_a_fault(
    overlay: str, rendered: dict[str, list[Resource]]
) -> None:
    definitions = schemas.read_definitions()
    if schemas.unchecked_kinds(rendered[overlay], definitions):
        pytest.skip(f"needs {schemas.CRD_VARIABLE}")
    for resource in copy.deepcopy(rendered[overlay]):
        if resource["kind"] in schemas.OPERATED:
            resource["spec"]["unheardOf"] = True
            assert any("unheardOf" in fault for fault in schemas.operated_faults([resource], definitions))
    cluster = one(copy.deepcopy(rendered[overlay]), "RayService", "valence")
    cluster["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] = "two"
    assert any("two" in fault for fault in schemas.operated_faults([cluster], definitions))


def test_definitions_are_read_from_every_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: dict[str, Any] = {"type": "object", "properties": {"size": {"type": "integer", "default": 1}}}
    top = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    schema = {"type": "object", "properties": {**top, "spec": spec}, "required": ["spec"]}
    versions = [{"name": "v2", "schema": {"openAPIV3Schema": schema}}]
    crd = {"spec": {"group": "example.org", "names": {"kind": "Gateway"}, "versions": versions}}
    for name, text in (("one", yaml.safe_dump(crd)), ("two", "")):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "crd.yaml").write_text(text)
    monkeypatch.setenv(schemas.CRD_VARIABLE, f"{tmp_path / 'two'}:{tmp_path / 'one'}")
    definitions = schemas.read_definitions()
    gateway: Resource = {
        "apiVersion": "example.org/v2",
        "kind": "Gateway",
        "metadata": {"name": "g"},
        "spec": {},
    }
    assert schemas.unchecked_kinds([gateway, {"kind": "Database"}], definitions) == ["Database"]
    assert list(schemas.operated_faults([gateway], definitions)) == []
    for change in ({"spec": {"size": "large"}}, {"spec": {"colour": 1}}, {"apiVersion": "example.org/v1"}):
        assert len(list(schemas.operated_faults([gateway | change], definitions))) == 1


def test_the_ingress_controller_lets_the_largest_body_in(local: list[Resource]) -> None:
    annotations = one(local, "Ingress", "valence")["metadata"]["annotations"]
    size = annotations["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size.removesuffix("m")) * 2**20 > LARGE_BODY


def test_secrets_of_others_are_explained_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text()
    for name, keys in references.SECRETS_OF_OTHERS.items():
        assert name in text
        assert all(key in text for key in keys)


def test_an_unknown_key_of_a_core_kind_is_refused(local: list[Resource]) -> None:
    mlflow(local)["restartpolicy"] = "Always"
    deployment = one(local, "Deployment", "valence-mlflow")
    assert any("restartpolicy" in fault for fault in schemas.core_faults([deployment]))


def test_an_unknown_key_of_a_pod_within_a_rayservice_is_refused(local: list[Resource]) -> None:
    worker(local)["imagepullpolicy"] = "Always"
    service = one(local, "RayService", "valence")
    assert any("imagepullpolicy" in fault for fault in schemas.core_faults([service]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("applications: [{name: a, import_path: 'a:b', routeprefix: /}]", "routeprefix is unknown"),
        ("http_option: {port: 1}\napplications: []", "http_option is unknown"),
        ("applications: [{name: a}]", "import_path"),
    ],
)
def test_what_serve_would_ignore_or_refuse_is_a_fault(local: list[Resource], given: str, said: str) -> None:
    one(local, "RayService", "valence")["spec"]["serveConfigV2"] = given
    assert any(said in fault for fault in schemas.serve_faults(local))


def missing_secret(resources: list[Resource]) -> None:
    worker(resources)["env"][0]["valueFrom"]["secretKeyRef"]["name"] = "nobody"


def missing_secret_key(resources: list[Resource]) -> None:
    worker(resources)["env"][0]["valueFrom"]["secretKeyRef"]["key"] = "nothing"


def missing_token(resources: list[Resource]) -> None:
    one(resources, "RayService", "valence")["spec"]["rayClusterConfig"]["authOptions"]["secretName"] = (
        "nobody"
    )


def missing_config_map(resources: list[Resource]) -> None:
    worker(resources)["envFrom"][0]["configMapRef"]["name"] = "valence-ray"


def missing_claim(resources: list[Resource]) -> None:
    resources.remove(one(resources, "PersistentVolumeClaim", "valence-backup"))


def missing_volume(resources: list[Resource]) -> None:
    mlflow(resources)["containers"][0]["volumeMounts"][0]["name"] = "nothing"


def missing_account(resources: list[Resource]) -> None:
    mlflow(resources)["serviceAccountName"] = "nobody"


def wrong_port(resources: list[Resource]) -> None:
    one(resources, "Service", "valence-mlflow")["spec"]["ports"][0]["targetPort"] = "web"


def wrong_probe(resources: list[Resource]) -> None:
    mlflow(resources)["containers"][0]["readinessProbe"]["httpGet"]["port"] = "web"


def wrong_scrape(resources: list[Resource]) -> None:
    one(resources, "PodMonitor", "valence")["spec"]["podMetricsEndpoints"][0]["port"] = "metrics"


def wrong_label(resources: list[Resource]) -> None:
    one(resources, "PodDisruptionBudget", "valence-workers")["spec"]["selector"]["matchLabels"] = {"a": "b"}


def wrong_policy(resources: list[Resource]) -> None:
    one(resources, "NetworkPolicy", "mlflow")["spec"]["ingress"][0]["ports"][0]["port"] = 5001


def wrong_backend(resources: list[Resource]) -> None:
    rule = one(resources, "Ingress", "valence")["spec"]["rules"][0]
    rule["http"]["paths"][0]["backend"]["service"]["name"] = "valence"


def wrong_address(resources: list[Resource]) -> None:
    options = one(resources, "RayService", "valence")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    options["redisAddress"] = "redis://valence-redis:6380"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (missing_secret, "no Secret nobody"),
        (missing_secret_key, "no key nothing"),
        (missing_token, "no Secret nobody"),
        (missing_config_map, "no ConfigMap valence-ray"),
        (missing_claim, "no PersistentVolumeClaim"),
        (missing_volume, "is no volume"),
        (missing_account, "no ServiceAccount"),
        (wrong_port, "no port web"),
        (wrong_probe, "asks port web"),
        (wrong_scrape, "no port metrics"),
        (wrong_label, "no pod has the labels"),
        (wrong_policy, "nobody listens on port 5001"),
        (wrong_backend, "no Service valence"),
        (wrong_address, "no port 6380"),
    ],
)
def test_what_is_named_and_is_not_there_is_a_fault(local: list[Resource], change: Change, said: str) -> None:
    assert list(references.reference_faults(local)) == []
    change(local)
    results = list(references.reference_faults(local))
    assert any(said in fault for fault in results), results


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("Cluster", "valence-database", "no Secret valence-database-app"),
        ("Cluster", "valence-database", "no Cluster valence-database"),
        ("ObjectStore", "valence-database", "no ObjectStore"),
        ("Gateway", "valence-tls", "no Gateway valence-tls"),
    ],
)
def test_production_misses_what_its_operators_need(
    production: list[Resource], kind: str, name: str, said: str
) -> None:
    production.remove(one(production, kind, name))
    results = list(references.reference_faults(production))
    assert any(said in fault for fault in results), results


def context(**changes: Any) -> Change:
    def change(resources: list[Resource]) -> None:
        worker(resources)["securityContext"] |= changes

    return change


def as_root(resources: list[Resource]) -> None:
    mlflow(resources)["securityContext"] |= {"runAsUser": 0, "runAsNonRoot": False}


def without_seccomp(resources: list[Resource]) -> None:
    del mlflow(resources)["securityContext"]["seccompProfile"]


def on_the_host(resources: list[Resource]) -> None:
    mlflow(resources)["hostNetwork"] = True


def with_a_folder_of_the_host(resources: list[Resource]) -> None:
    mlflow(resources)["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def with_a_literal_password(resources: list[Resource]) -> None:
    mlflow(resources)["containers"][0]["env"].append({"name": "PGPASSWORD", "value": "secret"})


def with_a_password_in_its_arguments(resources: list[Resource]) -> None:
    mlflow(resources)["containers"][0]["command"] += [
        "--backend-store-uri",
        "postgresql://x:$(PGPASSWORD)@db/x",
    ]


def without_requests(resources: list[Resource]) -> None:
    del mlflow(resources)["containers"][0]["resources"]


def with_an_open_autoscaler(resources: list[Resource]) -> None:
    options = one(resources, "RayService", "valence")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    del options["securityContext"]


def without_denial(resources: list[Resource]) -> None:
    resources.remove(one(resources, "NetworkPolicy", "deny"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (context(privileged=True), "privileged"),
        (context(allowPrivilegeEscalation=True), "gain privileges"),
        (context(readOnlyRootFilesystem=False), "root file system"),
        (context(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "capabilities"),
        (as_root, "as root"),
        (without_seccomp, "seccomp"),
        (on_the_host, "hostNetwork"),
        (with_a_folder_of_the_host, "hostPath"),
        (with_a_literal_password, "PGPASSWORD stands in the manifest"),
        (with_a_password_in_its_arguments, "PGPASSWORD stands in its arguments"),
        (without_requests, "asks for no CPU"),
        (with_an_open_autoscaler, "autoscaler"),
        (without_denial, "denies"),
    ],
)
def test_what_breaks_the_restricted_standard_is_a_fault(
    local: list[Resource], change: Change, said: str
) -> None:
    assert list(security.security_faults(local)) == []
    change(local)
    results = list(security.security_faults(local))
    assert any(said in fault for fault in results), results


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_has_a_role_of_its_own_and_the_head_no_token_of_its_autoscaler(
    overlay: str, rendered: dict[str, list[Resource]]
) -> None:
    resources = rendered[overlay]
    env = {each["name"]: each for each in mlflow(resources)["containers"][0]["env"]}
    for variable in ("PGUSER", "PGPASSWORD"):
        assert env[variable]["valueFrom"]["secretKeyRef"]["name"] == "valence-mlflow-database"
    cluster = one(resources, "RayService", "valence")["spec"]["rayClusterConfig"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {each["mountPath"]: each["name"] for each in head["volumeMounts"]}
    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "no-token"
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_production_speaks_to_its_database_over_tls(production: list[Resource]) -> None:
    (database,) = of_kind(production, "Database")
    (cluster,) = of_kind(production, "Cluster")
    assert database["spec"]["owner"] in {each["name"] for each in cluster["spec"]["managed"]["roles"]}
    using = [
        container
        for resource in production
        for _, template in templates(resource)
        for container in containers(template["spec"])
        if any(
            "database" in each.get("valueFrom", {}).get("secretKeyRef", {}).get("name", "")
            for each in container.get("env", ())
        )
    ]
    assert len(using) >= 5
    for container in using:
        assert settings_of(production, container).get("PGSSLMODE") == "require", container["name"]


def test_a_secret_that_is_rendered_in_production_is_a_fault(production: list[Resource]) -> None:
    assert list(security.secret_faults(production)) == []
    production.append({"kind": "Secret", "metadata": {"name": "a"}})
    assert list(security.secret_faults(production))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RAY_SERVE_THROUGHPUT_OPTIMIZED", None, "is not set"),
        ("RAY_SERVE_ENABLE_HA_PROXY", "0", "not '1'"),
        ("VALENCE_HAPROXY_ROOM", "5", "not '200'"),
    ],
)
def test_an_environment_unlike_that_of_one_machine_is_a_fault(
    local: list[Resource], variable: str, value: str | None, said: str
) -> None:
    assert list(security.environment_faults(local)) == []
    for each in of_kind(local, "ConfigMap"):
        if variable in each["data"]:
            each["data"].pop(variable)
            each["data"] |= {} if value is None else {variable: value}
    results = list(security.environment_faults(local))
    assert any(variable in fault and said in fault for fault in results), results


def test_a_change_of_the_settings_changes_the_rayservice(rendered: dict[str, list[Resource]]) -> None:
    names = {worker(resources)["envFrom"][1]["configMapRef"]["name"] for resources in rendered.values()}
    assert len(names) == len(OVERLAYS)
    assert all(re.fullmatch(r"valence-settings-[a-z0-9]{10}", name) for name in names)


def test_every_pod_of_ours_runs_the_image_of_the_release(rendered: dict[str, list[Resource]]) -> None:
    from k8s.rendered import containers, pods

    for resources in rendered.values():
        images = {each["image"] for pod in pods(resources) for each in containers(pod.spec or {})}
        ours = {image for image in images if image.startswith("valence")}
        assert ours <= {"valence:0.1.0", "valence-gpu:0.1.0"}
        assert all(re.search(r":[\w.-]+$", image) for image in images)
