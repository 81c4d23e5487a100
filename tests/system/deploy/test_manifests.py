"""The Kubernetes manifests are valid, safe, and consistent with the worker and their comments."""

import os
from copy import deepcopy
from ipaddress import ip_network
from math import ceil
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest

from tests.system.deploy.manifests import (
    CUSTOM,
    KUBERNETES,
    Manifest,
    of_kind,
    one,
    overlay,
    render,
    violations,
    workloads,
)
from worker.settings import Settings, load

OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
PRODUCTION = [name for name in OVERLAYS if name.startswith("production")]
SCALED = ["dev-keda", "production-hpa", "production-keda"]


def _worker(name: str) -> Manifest:
    return one(overlay(name), "Deployment")


def _pod(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def _settings(name: str) -> Settings:
    """Return the settings of a worker of this overlay."""
    (container,) = _pod(_worker(name))["containers"]
    env = {**one(overlay(name), "ConfigMap")["data"]}
    env |= {each["name"]: each.get("value", "redis://redis:6379/0") for each in container["env"]}
    env["TURNBUS_WORKER_ID"] = "turnbus-7d4b9c-x2x7p"
    return load(env)


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_manifests_are_valid(name: str, version: str) -> None:
    for manifest in overlay(name):
        if kind := CUSTOM.get(manifest["kind"]):
            msgspec.convert(manifest, kind)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_misspelled_field_is_invalid() -> None:
    wrong = deepcopy(_worker("production"))
    _pod(wrong)["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)
    (scaled,) = deepcopy(of_kind(overlay("production-keda"), "ScaledObject"))
    scaled["spec"]["triggers"][0]["metadata"]["streamlength"] = "1"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(scaled, CUSTOM["ScaledObject"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_meet_restricted_security_standard(name: str) -> None:
    for workload in workloads(overlay(name)):
        pod = _pod(workload)
        assert not list(violations(pod))
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"], "a tag"
    (namespace,) = of_kind(overlay(name), "Namespace")
    enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_pod_security_violation_is_found() -> None:
    pod = _pod(_worker("production"))
    spoiled = [
        {**pod, "hostNetwork": True},
        {**pod, "volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
        {**pod, "securityContext": {}},
        {**pod, "containers": [{**pod["containers"][0], "securityContext": {"privileged": True}}]},
    ]
    assert all(list(violations(each)) for each in spoiled)


@pytest.mark.parametrize("name", OVERLAYS)
def test_worker_accepts_settings_of_overlays(name: str) -> None:
    settings = _settings(name)
    (container,) = _pod(_worker(name))["containers"]
    (mount,) = container["volumeMounts"]
    assert Path(settings.stt_api_key_file).parent == Path(mount["mountPath"])
    assert settings.admin is not None
    host, port = settings.admin
    assert host == "0.0.0.0", "probes come from outside"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"admin": port}
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_grace_period_covers_release_of_sessions(name: str) -> None:
    assert _pod(_worker(name))["terminationGracePeriodSeconds"] >= _settings(name).drain_s + 10


@pytest.mark.parametrize("name", OVERLAYS)
def test_memory_request_covers_sessions(name: str) -> None:
    (container,) = _pod(_worker(name))["containers"]
    request = int(container["resources"]["requests"]["memory"].removesuffix("Mi"))
    assert request >= 60 + _settings(name).max_sessions * (64 + 46) / 1024


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_match_their_pods(name: str) -> None:
    manifests = overlay(name)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads(manifests)]

    def selects(selector: Manifest) -> int:
        wanted = selector["matchLabels"].items()
        return sum(wanted <= each.items() for each in labels)

    for policy in of_kind(manifests, "NetworkPolicy"):
        assert selects(policy["spec"]["podSelector"]) == 1
    for each in of_kind(manifests, "PodDisruptionBudget", "PodMonitor"):
        assert selects(each["spec"]["selector"]) == 1
    for workload in workloads(manifests):
        assert selects(workload["spec"]["selector"]) == 1
        for spread in _pod(workload).get("topologySpreadConstraints", ()):
            assert spread["labelSelector"] == workload["spec"]["selector"]
    for service in of_kind(manifests, "Service"):
        assert selects({"matchLabels": service["spec"]["selector"]}) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_has_network_policies(name: str) -> None:
    manifests = overlay(name)
    for workload in workloads(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        kinds = {
            kind
            for policy in of_kind(manifests, "NetworkPolicy")
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels
            for kind in policy["spec"]["policyTypes"]
        }
        assert kinds == {"Ingress", "Egress"}


@pytest.mark.parametrize("name", PRODUCTION)
def test_egress_allows_ipv4_and_ipv6(name: str) -> None:
    outside = [one(overlay(name), "NetworkPolicy", f"turnbus-{what}") for what in ("redis", "stt")]
    for policy in outside:
        (rule,) = policy["spec"]["egress"]
        blocks = [to["ipBlock"] for to in rule["to"]]
        assert {ip_network(block["cidr"]).version for block in blocks} == {4, 6}
        for block in blocks:
            inside = ip_network(block["cidr"])
            for hole in map(ip_network, block.get("except", ())):
                assert hole.version == inside.version
                assert inside.supernet_of(hole)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dev", "dev-keda"])
def test_references_of_dev_overlay_exist(name: str) -> None:
    manifests = overlay(name)
    secrets = {each["metadata"]["name"] for each in of_kind(manifests, "Secret")}
    services = {each["metadata"]["name"] for each in of_kind(manifests, "Service")}
    (container,) = _pod(_worker(name))["containers"]
    wanted = {_pod(_worker(name))["volumes"][0]["secret"]["secretName"]}
    wanted |= {
        each["valueFrom"]["secretKeyRef"]["name"]
        for each in container["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    for each in of_kind(manifests, "TriggerAuthentication"):
        wanted |= {reference["name"] for reference in each["spec"]["secretTargetRef"]}
    assert wanted == secrets
    assert services == {"redis"}
    (sidecar,) = _pod(_worker(name))["initContainers"]
    assert sidecar["restartPolicy"] == "Always"


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_overlay_has_no_secrets(name: str) -> None:
    assert not of_kind(overlay(name), "Secret")
    (container,) = _pod(_worker(name))["containers"]
    assert not [each for each in container["env"] if "PASSWORD" in each["name"]]


@pytest.mark.parametrize("name", SCALED)
def test_deployment_leaves_replicas_to_scaler(name: str) -> None:
    assert "replicas" not in _worker(name)["spec"]


def test_keda_scales_on_demand() -> None:
    settings = _settings("production-keda")
    (scaled,) = of_kind(overlay("production-keda"), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    target = int(trigger["metadata"]["streamLength"])
    assert trigger["metadata"]["stream"] == f"{settings.prefix}:sessions"
    assert target == settings.max_sessions * 7 // 10
    assert scaled["spec"]["maxReplicaCount"] == ceil(settings.stt_max_connections / target)
    assert scaled["spec"]["minReplicaCount"] == 2
    (dev,) = of_kind(overlay("dev-keda"), "ScaledObject")
    assert dev["spec"]["minReplicaCount"] == 0


def test_hpa_matches_keda() -> None:
    (scaled,) = of_kind(overlay("production-keda"), "ScaledObject")
    (hpa,) = of_kind(overlay("production-hpa"), "HorizontalPodAutoscaler")
    (metric,) = hpa["spec"]["metrics"]
    length = scaled["spec"]["triggers"][0]["metadata"]["streamLength"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": length}
    assert hpa["spec"]["minReplicas"] == scaled["spec"]["minReplicaCount"]
    assert hpa["spec"]["maxReplicas"] == scaled["spec"]["maxReplicaCount"]
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert hpa["spec"]["behavior"] == behavior
    assert hpa["spec"]["scaleTargetRef"]["name"] == _worker("production-hpa")["metadata"]["name"]


@pytest.mark.parametrize("form", ["cluster", "sentinel"])
def test_keda_supports_other_redis_topologies(form: str, tmp_path: Path) -> None:
    root = Path(os.path.relpath(KUBERNETES, tmp_path.resolve()))
    parts = [root / "components" / name for name in ("keda", f"keda-{form}")]
    components = "".join(f"  - {part}\n" for part in parts)
    (tmp_path / "kustomization.yaml").write_text(
        f"namespace: turnbus\nresources:\n  - {root / 'overlays' / 'production'}\n"
        f"components:\n{components}"
    )
    manifests = render(tmp_path)
    (scaled,) = of_kind(manifests, "ScaledObject")
    (authentication,) = of_kind(manifests, "TriggerAuthentication")
    for manifest in (scaled, authentication):
        msgspec.convert(manifest, CUSTOM[manifest["kind"]])
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == f"redis-{form}-streams"
    assert authentication["spec"]["secretTargetRef"][0]["parameter"] == "addresses"


def test_disruption_budget_allows_eviction_of_unready_pods() -> None:
    (budget,) = of_kind(overlay("production"), "PodDisruptionBudget")
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
