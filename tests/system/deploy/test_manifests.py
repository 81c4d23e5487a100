"""The Kubernetes manifests are valid, safe, and consistent with the worker and their comments."""

import os
import re
from base64 import b64decode
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
from worker.ingest.settings import IngestSettings
from worker.settings import Settings, load, load_ingest

OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
PRODUCTION = [name for name in OVERLAYS if name.startswith("production")]
SCALED = ["dev-keda", "production-hpa", "production-ingest", "production-keda"]
GATEWAYS = ["dev", "dev-keda", "production-ingest"]
FLUSH_S = 5
"""Time in which a drained gateway appends what its calls have left."""


def _worker(name: str) -> Manifest:
    return one(overlay(name), "Deployment")


def _gateway(name: str) -> Manifest:
    return one(overlay(name), "Deployment", "turnbus-ingest")


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


def _gateway_settings(name: str) -> tuple[Settings, IngestSettings]:
    """Return the settings of a gateway of this overlay."""
    (container,) = _pod(_gateway(name))["containers"]
    (source,) = container["envFrom"]
    manifest = one(overlay(name), "ConfigMap", "turnbus-ingest")
    assert source["configMapRef"]["name"] == manifest["metadata"]["name"]
    return load_ingest(manifest["data"])


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


def test_worker_accepts_settings_of_a_second_provider() -> None:
    text = (KUBERNETES / "overlays" / "production" / "kustomization.yaml").read_text("utf-8")
    settings = load(dict(re.findall(r"^ +# - (TURNBUS_\w+)=(\S+)$", text, re.MULTILINE)))
    assert settings.providers == ("cartesia", "flux")
    (container,) = _pod(_worker("production"))["containers"]
    (mount,) = container["volumeMounts"]
    file = Path(settings.deepgram_api_key_file)
    assert file.parent == Path(mount["mountPath"])
    runbook = (KUBERNETES.parent / "RUNBOOK.md").read_text("utf-8")
    assert f"--from-file={file.name}=" in runbook


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
    outside = ["redis", "stt", *(["ingest-redis"] if name in GATEWAYS else [])]
    for policy in (one(overlay(name), "NetworkPolicy", f"turnbus-{what}") for what in outside):
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
    wanted = set()
    for workload in (_worker(name), _gateway(name)):
        pod = _pod(workload)
        wanted |= {volume["secret"]["secretName"] for volume in pod["volumes"]}
        wanted |= {
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in pod["containers"][0]["env"]
            if "secretKeyRef" in each.get("valueFrom", {})
        }
    for each in of_kind(manifests, "TriggerAuthentication"):
        wanted |= {reference["name"] for reference in each["spec"]["secretTargetRef"]}
    assert wanted == secrets
    assert services == {"redis", "turnbus-ingest"}
    (sidecar,) = _pod(_worker(name))["initContainers"]
    assert sidecar["restartPolicy"] == "Always"


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_overlay_has_no_secrets(name: str) -> None:
    assert not of_kind(overlay(name), "Secret")
    for workload in workloads(overlay(name)):
        (container,) = _pod(workload)["containers"]
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


# -- the gateway


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateway_accepts_settings_of_overlays(name: str) -> None:
    worker, (settings, gateway) = _settings(name), _gateway_settings(name)
    assert settings.prefix == worker.prefix
    (container,) = _pod(_gateway(name))["containers"]
    assert container["args"] == ["ingest"]
    assert gateway.audiosocket is not None
    assert gateway.listen[0] == gateway.audiosocket[0] == "0.0.0.0"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": gateway.listen[1], "audiosocket": gateway.audiosocket[1]}
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    service = one(overlay(name), "Service", "turnbus-ingest")["spec"]
    assert {each["targetPort"]: each["port"] for each in service["ports"]} == ports


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateway_reads_its_secrets_from_files(name: str) -> None:
    _, gateway = _gateway_settings(name)
    pod = _pod(_gateway(name))
    (mount,) = pod["containers"][0]["volumeMounts"]
    files = {
        Path(gateway.ingest_basic_file),
        Path(gateway.ingest_bearer_file),
        Path(gateway.ingest_token_key_file),
        Path(gateway.ingest_twilio_auth_token_file),
    }
    assert {each.parent for each in files} == {Path(mount["mountPath"])}
    (volume,) = pod["volumes"]
    if name in PRODUCTION:
        assert volume["secret"]["secretName"] == "turnbus-ingest"
    else:
        secret = one(overlay(name), "Secret", "turnbus-ingest")
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        assert secret["data"].keys() == {each.name for each in files}
        assert len(b64decode(secret["data"]["token-key"])) >= 32


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateway_lives_until_its_calls_end(name: str) -> None:
    deployment = _gateway(name)
    pod = _pod(deployment)
    _, sleep_s = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = _gateway_settings(name)[1].ingest_drain_s
    assert pod["terminationGracePeriodSeconds"] >= int(sleep_s) + drain_s + FLUSH_S
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    budget = one(overlay(name), "PodDisruptionBudget", "turnbus-ingest")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "unhealthyPodEvictionPolicy" not in budget


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateway_memory_limit_covers_redis_outage(name: str) -> None:
    _, gateway = _gateway_settings(name)
    (container,) = _pod(_gateway(name))["containers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert limit >= 60 + gateway.ingest_max_calls * gateway.ingest_buffer_s * 32_000 / 2**20


@pytest.mark.parametrize("name", GATEWAYS)
def test_ingress_routes_producers_and_viewers_only(name: str) -> None:
    ingress = one(overlay(name), "Ingress", "turnbus-ingest")
    (rule,) = ingress["spec"]["rules"]
    service = {"name": "turnbus-ingest", "port": {"name": "http"}}
    assert {each["path"] for each in rule["http"]["paths"]} == {
        *("/twilio", "/asterisk", "/freeswitch", "/raw", "/events")
    }
    for each in rule["http"]["paths"]:
        assert each["pathType"] == "Exact"
        assert each["backend"] == {"service": service}
    _, gateway = _gateway_settings(name)
    hosts = [host for each in ingress["spec"].get("tls", ()) for host in each["hosts"]]
    scheme = "https" if hosts else "http"
    assert gateway.ingest_public_url == f"{scheme}://{rule['host']}"
    assert hosts == ([rule["host"]] if name in PRODUCTION else [])


@pytest.mark.parametrize("name", GATEWAYS)
def test_ingress_timeouts_exceed_heartbeats(name: str) -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = one(overlay(name), "Ingress", "turnbus-ingest")["metadata"]["annotations"]
    assert annotations.pop(f"{prefix}proxy-buffering") == "off"
    assert annotations.keys() == {f"{prefix}proxy-read-timeout", f"{prefix}proxy-send-timeout"}
    assert all(int(value) >= 600 for value in annotations.values())


def test_policy_allows_the_same_pbxs_as_the_gateway() -> None:
    policy = one(overlay("production-ingest"), "NetworkPolicy", "turnbus-ingest-pbx")
    (rule,) = policy["spec"]["ingress"]
    allowed = tuple(ip_network(each["ipBlock"]["cidr"]) for each in rule["from"])
    assert _gateway_settings("production-ingest")[1].audiosocket_allow == allowed
