"""The rendered manifests of `deploy/kubernetes`, and helpers that select parts of them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from msgspec import Meta

DEPLOY = Path(__file__).parents[3] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
Manifest = dict[str, Any]
HASH_CHARS = "2456789bcdfghkmt"
"""Characters of the hashes that kustomize appends to names."""


def render(directory: Path) -> list[Manifest]:
    """Return what kustomize renders from a directory; skip the test without kustomize."""
    for command in (("kustomize", "build"), ("kubectl", "kustomize")):
        if shutil.which(command[0]):
            done = subprocess.run([*command, directory], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return list(yaml.safe_load_all(done.stdout))
    pytest.skip("neither kustomize nor kubectl is installed")


@cache
def overlay(name: str) -> list[Manifest]:
    """Return the manifests of an overlay."""
    return render(KUBERNETES / "overlays" / name)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def one(manifests: list[Manifest], kind: str, name: str = "turnbus") -> Manifest:
    """Return the one of a kind with this name, or with this name and the hash of its content."""
    hashed = re.compile(f"{re.escape(name)}(-[{HASH_CHARS}]{{10}})?")
    (found,) = (
        manifest
        for manifest in of_kind(manifests, kind)
        if hashed.fullmatch(manifest["metadata"]["name"])
    )
    return found


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    """Return the manifests that create pods."""
    return of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")


def violations(pod: Manifest) -> Iterator[str]:
    """Yield what the Pod Security Standard `restricted` forbids in a pod's spec.

    It follows the standard's table of 1.37. Rules for Windows, and those that older versions
    relaxed, are left out.
    """
    yield from _outside_its_sandbox(pod)
    containers = [*pod.get("containers", ()), *pod.get("initContainers", ())]
    shared = pod.get("securityContext", {})
    for container in [*containers, *pod.get("ephemeralContainers", ())]:
        own = container.get("securityContext", {})
        both = {**shared, **own}
        if both.get("runAsNonRoot") is not True:
            yield "runAsNonRoot"
        if both.get("runAsUser") == 0:
            yield "runAsUser"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccompProfile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        if own.get("privileged"):
            yield "privileged"
        if own.get("procMount", "Default") != "Default":
            yield "procMount"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()):
            yield "capabilities.drop"
        if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield "capabilities.add"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield "hostPort"


def _outside_its_sandbox(pod: Manifest) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    allowed = {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
        *("persistentVolumeClaim", "projected", "secret"),
    }
    for volume in pod.get("volumes", ()):
        if volume.keys() - {"name"} - allowed:
            yield "volumes"
    if pod.get("securityContext", {}).get("sysctls"):
        yield "sysctls"


# -- custom resources of other projects, as far as they are used here


class _Closed(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A resource in which a misspelled field would be dropped silently."""


class _Meta(_Closed):
    name: str
    namespace: str
    labels: dict[str, str] = {}


class _Named(_Closed):
    name: str


class _Policy(_Closed):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Meta(ge=1)]
    period_seconds: Annotated[int, Meta(ge=1, le=1_800)]


class _Rules(_Closed):
    stabilization_window_seconds: Annotated[int, Meta(ge=0, le=3_600)]
    policies: list[_Policy]


class _Behavior(_Closed):
    scale_up: _Rules
    scale_down: _Rules


class _Hpa(_Closed):
    behavior: _Behavior


class _Advanced(_Closed):
    horizontal_pod_autoscaler_config: _Hpa


class _StreamMetadata(_Closed):
    stream: str
    stream_length: Annotated[str, Meta(pattern="^[1-9][0-9]*$")]
    sentinel_master: str = ""


class _Trigger(_Closed):
    type: Literal["redis-streams", "redis-cluster-streams", "redis-sentinel-streams"]
    metadata: _StreamMetadata
    authentication_ref: _Named
    use_cached_metrics: bool


class _Scaled(_Closed):
    scale_target_ref: _Named
    min_replica_count: Annotated[int, Meta(ge=0)]
    max_replica_count: Annotated[int, Meta(ge=1)]
    polling_interval: Annotated[int, Meta(ge=1)]
    advanced: _Advanced
    triggers: list[_Trigger]
    cooldown_period: Annotated[int, Meta(ge=0)] = 300


class ScaledObject(_Closed):
    """A ScaledObject of KEDA, with the metadata fields of its Redis streams scalers."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: _Meta
    spec: _Scaled


class _SecretRef(_Closed):
    parameter: Literal["address", "addresses", "username", "password"]
    name: str
    key: str


class _Authentication(_Closed):
    secret_target_ref: list[_SecretRef]


class TriggerAuthentication(_Closed):
    """A TriggerAuthentication of KEDA."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: _Meta
    spec: _Authentication


class _Labels(_Closed):
    match_labels: dict[str, str]


class _Endpoint(_Closed):
    port: str
    path: str
    interval: str


class _Monitored(_Closed):
    selector: _Labels
    pod_metrics_endpoints: list[_Endpoint]


class PodMonitor(_Closed):
    """A PodMonitor of the Prometheus operator."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: _Meta
    spec: _Monitored


CUSTOM: dict[str, type[msgspec.Struct]] = {
    "ScaledObject": ScaledObject,
    "TriggerAuthentication": TriggerAuthentication,
    "PodMonitor": PodMonitor,
}
