"""The Helm chart and the sidecar's manifests, rendered by Helm's own library and held against Kubernetes' schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from protocol.settings import load_settings, parse_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "chorus"
SIDECAR = ROOT / "deploy" / "sidecar" / "sidecar.yaml"
VERSIONS = ("1.29", "1.34")
"""The oldest Kubernetes the schemas are checked for, and a new one."""

OF_THE_OPERATOR = {"ServiceMonitor", "PrometheusRule"}
"""Kinds that the Prometheus operator defines; Kubernetes has no schema for them."""

SEEN = {
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "grafanaDashboards": {"enabled": True},
}
HOSTED = {
    "engines": {"enabled": False},
    "gateway": {
        "existingSecret": "keys",
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "autoscaling": {"enabled": False},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    },
}
GPU = {
    "engines": {
        "gpu": {"count": 2},
        "pullWeights": False,
        "persistence": {"enabled": False},
        "existingSecret": "hub",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "nodeSelector": {"gpu": "yes"},
    },
    "imagePullSecrets": [{"name": "registry"}],
    "gateway": {"existingConfigMap": "mine", "image": {"digest": "sha256:" + "0" * 64}},
    "networkPolicy": {"enabled": False},
}
SHARED = {
    "redis": {"enabled": True},
    "gateway": {
        "config": "models: {m: {openai: {base_url: https://api.example/v1, model: m}}}\n"
        "redis: {url: os.environ/CHORUS_REDIS_URL}\n"
        "keys: {pepper: os.environ/PEPPER, admin: os.environ/ADMIN}\n",
        "existingSecret": "keys",
    },
}
EPHEMERAL = {**SHARED, "redis": {"enabled": True, "persistence": {"enabled": False}}}
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "seen": SEEN,
    "hosted": HOSTED,
    "gpu": GPU,
    "redis": SHARED,
    "redis without a volume": EPHEMERAL,
}


def rendered(values: Mapping[str, Any], name: str = "demo") -> list[dict[str, Any]]:
    """Every object that a release with these values consists of."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name=name, namespace="models")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The specs of all pods."""
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_finds_no_fault(values: dict[str, Any]) -> None:
    """`helm lint --strict` has nothing to say."""
    report = helm_python.lint(CHART, values, strict=True)
    assert (report["messages"], report["errors"]) == ([], [])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_fits_its_schema(values: dict[str, Any], version: str) -> None:
    """Each rendered object is one that Kubernetes takes, unknown fields being faults."""
    for each in rendered(values):
        if each["kind"] not in OF_THE_OPERATOR:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_check_bites() -> None:
    """A misspelt field is found."""
    gateway = one(rendered({}), "Deployment", "demo-chorus-gateway")
    gateway["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(gateway, VERSIONS[-1], strict=True)


def test_a_misspelt_value_is_refused() -> None:
    """The values have a schema of their own: what would have no effect is an error."""
    with pytest.raises(helm_python.HelmError, match="replicaz"):
        rendered({"gateway": {"replicaz": 3}})


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_are_confined(values: dict[str, Any]) -> None:
    """Every container runs as a numbered user on a read-only root without capabilities, service account or
    privileges, and has its memory bounded."""
    for pod in pods(rendered(values)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_time_to_drain() -> None:
    """A pod is given longer than it takes: what it waits for endpoints, what answers and helpers may take."""
    from gateway.supervisor import HELPER_GRACE_S, WORKER_GRACE_S

    with helm_python.Chart.load(CHART) as chart:
        gateway = chart.values["gateway"]
    longest = gateway["preStopSeconds"] + WORKER_GRACE_S + HELPER_GRACE_S
    assert gateway["terminationGracePeriodSeconds"] >= longest


def test_a_gateway_stays_while_another_comes() -> None:
    """An upgrade takes no gateway away before its successor is ready, and a drain of nodes one at a time."""
    objects = rendered({})
    gateway = one(objects, "Deployment", "demo-chorus-gateway")
    assert gateway["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in gateway["spec"], "the autoscaler's affair"
    assert one(objects, "PodDisruptionBudget", "demo-chorus-gateway")["spec"]["maxUnavailable"] == 1
    assert one(objects, "HorizontalPodAutoscaler", "demo-chorus-gateway")["spec"]["minReplicas"] == 2
    assert one(rendered(HOSTED), "Deployment", "demo-chorus-gateway")["spec"]["replicas"] == 2


def test_another_config_is_another_pod() -> None:
    """Changing the settings rolls the pods; changing the scrape interval does not."""

    def mark(values: dict[str, Any]) -> str:
        template = one(rendered(values), "Deployment", "demo-chorus-gateway")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/config"]
        return found

    assert mark({"gateway": {"config": "models: {}"}}) != mark({})
    assert mark(SEEN) == mark({})


def test_only_gateways_reach_engines() -> None:
    """The policy of the engine host lets its own release's gateways in, and nobody else."""
    policy = one(rendered({}), "NetworkPolicy", "demo-chorus-engines")["spec"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "chorus",
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": "gateway",
    }
    assert (
        one(rendered({"engines": {"pullWeights": False}}), "NetworkPolicy", "demo-chorus-engines")["spec"][
            "egress"
        ]
        == []
    )


def test_the_admin_port_is_never_published_with_the_api() -> None:
    """The API's Service has the API's port alone."""
    service = one(rendered(HOSTED), "Service", "demo-chorus")["spec"]
    assert service["type"] == "LoadBalancer"
    assert [port["targetPort"] for port in service["ports"]] == ["http"]


def test_the_monitor_finds_the_admin_service() -> None:
    """What the ServiceMonitor selects is the one Service with an admin port, and the job's name is one that the
    alerts know."""
    objects = rendered(SEEN)
    monitor = one(objects, "ServiceMonitor", "demo-chorus")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    chosen = [
        each for each in objects if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()
    ]
    assert [each["metadata"]["name"] for each in chosen] == ["demo-chorus-admin"]
    assert [port["name"] for port in chosen[0]["spec"]["ports"]] == [monitor["endpoints"][0]["port"]]


def test_dashboards_and_rules_are_passed_on_as_they_are() -> None:
    """Neither is mangled by the templates, whose braces they share."""
    objects = rendered(SEEN)
    boards = one(objects, "ConfigMap", "demo-chorus-dashboards")["data"]
    assert boards == {path.name: path.read_text() for path in (CHART / "files" / "dashboards").iterdir()}
    rules = one(objects, "PrometheusRule", "demo-chorus")["spec"]
    assert rules == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())


def test_gpus_are_asked_for() -> None:
    """`engines.gpu.count` becomes a limit; without it there is none."""
    limits = one(rendered(GPU), "StatefulSet", "demo-chorus-engines")["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert limits["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia" not in str(rendered({}))


def test_default_settings_are_those_of_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chart's settings are config/gateway.yaml and config/engines.yaml, artefacts being where the image has
    them, and the gateway is told where the engine host is."""
    url = "http://demo-chorus-engines:8090/v1"
    monkeypatch.setenv("CHORUS_ENGINES_URL", url)
    objects = rendered({})
    for part in ("gateway", "engines"):
        text = one(objects, "ConfigMap", f"demo-chorus-{part}")["data"]["chorus.yaml"]
        found = parse_settings(text.replace("/app/config/", ""), base=ROOT / "config")
        assert found == load_settings(ROOT / "config" / f"{part}.yaml")
    container = one(objects, "Deployment", "demo-chorus-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "CHORUS_ENGINES_URL", "value": url}]
    assert one(objects, "Service", "demo-chorus-engines")["spec"]["ports"][0]["port"] == 8090


def test_gateways_share_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways are told its address, and they alone reach it; it keeps what it is told and evicts nothing. A config
    that does not use it is refused, and there is none by default."""
    objects = rendered(SHARED)
    container = one(objects, "Deployment", "demo-chorus-gateway")["spec"]["template"]["spec"]["containers"][0]
    env = {each["name"]: each["value"] for each in container["env"]}
    service = one(objects, "Service", "demo-chorus-redis")["spec"]
    assert env["CHORUS_REDIS_URL"] == f"redis://demo-chorus-redis:{service['ports'][0]['port']}/0"
    for name, value in {**env, "PEPPER": "p", "ADMIN": "a"}.items():
        monkeypatch.setenv(name, value)
    settings = parse_settings(one(objects, "ConfigMap", "demo-chorus-gateway")["data"]["chorus.yaml"])
    assert settings.redis.url is not None
    spec = one(objects, "StatefulSet", "demo-chorus-redis")["spec"]
    assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    told = spec["template"]["spec"]["containers"][0]["args"]
    assert told[told.index("--appendonly") + 1] == "yes"
    assert told[told.index("--maxmemory-policy") + 1] == "noeviction"
    policy = one(objects, "NetworkPolicy", "demo-chorus-redis")["spec"]
    (rule,) = policy["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    out = one(objects, "NetworkPolicy", "demo-chorus-gateway")["spec"]["egress"]
    assert any(each["ports"][0]["port"] == 6379 for each in out)
    with pytest.raises(helm_python.HelmError, match="CHORUS_REDIS_URL"):
        rendered({"redis": {"enabled": True}})
    assert "redis" not in str(rendered({}))


def test_a_config_of_ones_own_replaces_the_default() -> None:
    """Nothing of the default is merged into it."""
    mine = "models: {m: {openai: {base_url: https://api.example/v1, model: m}}}\n"
    objects = rendered({"gateway": {"config": mine}, "engines": {"enabled": False}})
    assert one(objects, "ConfigMap", "demo-chorus-gateway")["data"]["chorus.yaml"] == mine


@pytest.mark.parametrize("release", ["chorus", "my-chorus", "a" * 53])
def test_names_fit(release: str) -> None:
    """A release named chorus is not chorus-chorus, and names stay within Kubernetes' 63 characters."""
    names = [each["metadata"]["name"] for each in rendered({}, name=release)]
    assert all(len(name) <= 63 and "chorus-chorus" not in name for name in names)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sidecar_fits_its_schema(version: str) -> None:
    """Every object of deploy/sidecar is one that Kubernetes takes."""
    for each in yaml.safe_load_all(SIDECAR.read_text()):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_sidecar_is_for_its_pod_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are valid, its API is on the pod's loopback where the app looks for it, and its probes are where
    the kubelet can reach them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    config, deployment = yaml.safe_load_all(SIDECAR.read_text())
    server = parse_settings(config["data"]["chorus.yaml"]).server
    assert (server.host, server.admin_host) == ("127.0.0.1", "0.0.0.0")
    pod = deployment["spec"]["template"]["spec"]
    (chorus,) = pod["initContainers"]
    assert chorus["restartPolicy"] == "Always"
    assert chorus["ports"] == [{"name": "admin", "containerPort": server.admin_port}]
    environ = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert environ["OPENAI_BASE_URL"] == f"http://127.0.0.1:{server.port}/v1"
