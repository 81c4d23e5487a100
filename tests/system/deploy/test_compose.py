"""The compose file: its services, their rights, and settings that workers accept."""

import re
from typing import Any, Literal

import msgspec
import yaml

from tests.system.deploy.container import ROOT, stages
from tests.system.deploy.manifests import DEPLOY
from worker.settings import load, load_ingest
from worker.telemetry.environment import exporter_name


class _Closed(msgspec.Struct, forbid_unknown_fields=True):
    """A part in which a misspelled key is an error."""


class _Build(_Closed):
    context: str
    dockerfile: str
    target: str


class _Condition(_Closed):
    condition: Literal["service_healthy", "service_started"]
    restart: bool = False


class _Health(_Closed):
    test: list[str]
    interval: str
    timeout: str
    retries: int


class _Service(_Closed, kw_only=True):
    image: str
    build: _Build | None = None
    command: list[str] = []
    environment: dict[str, str] = {}
    network_mode: str = ""
    ports: list[str] = []
    volumes: list[str] = []
    depends_on: dict[str, _Condition] = {}
    healthcheck: _Health | None = None
    restart: Literal["unless-stopped"]
    stop_grace_period: str = "10s"
    read_only: Literal[True]
    cap_drop: list[str]
    user: str = ""
    security_opt: list[str]
    mem_limit: str = ""
    profiles: list[str] = []


class _Compose(msgspec.Struct):
    services: dict[str, _Service]
    volumes: dict[str, None]


def _compose() -> _Compose:
    raw: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return msgspec.convert(raw, _Compose)


def test_services_have_minimal_rights() -> None:
    compose = _compose()
    always = {name for name, service in compose.services.items() if not service.profiles}
    assert always == {"redis", "stt-server", "worker-1", "worker-2", "ingest"}
    for service in compose.services.values():
        assert service.cap_drop == ["ALL"]
        assert service.security_opt == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.ports)
        assert set(service.depends_on) <= set(compose.services)
        if service.build:
            assert service.build.target in stages()
            assert (DEPLOY / service.build.context / service.build.dockerfile).is_file()
            assert (DEPLOY / service.build.context).resolve() == ROOT


def _environment(service: _Service) -> dict[str, str]:
    """Return the values that compose fills in while nothing is set outside."""
    return {
        key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for key, value in service.environment.items()
    }


def test_workers_accept_their_settings() -> None:
    services = _compose().services
    ids, ports = set(), set()
    for name in ("worker-1", "worker-2"):
        env = _environment(services[name])
        assert exporter_name("traces", env) == "none"
        settings = load(env)
        assert settings.providers == ("cartesia",)
        assert "DEEPGRAM_API_KEY" in env
        assert settings.admin is not None
        ids.add(settings.worker_id)
        ports.add(settings.admin[1])
        assert int(services[name].stop_grace_period.removesuffix("s")) >= settings.drain_s + 10
        assert f"127.0.0.1:{settings.admin[1]}:{settings.admin[1]}" in services["stt-server"].ports
        assert services[name].network_mode == "service:stt-server"
    assert len(ids) == len(ports) == 2


def test_gateway_accepts_its_settings() -> None:
    services = _compose().services
    service = services["ingest"]
    env = _environment(service)
    assert exporter_name("traces", env) == "none"
    settings, gateway = load_ingest(env)
    assert settings.redis_url == load(_environment(services["worker-1"])).redis_url
    assert gateway.audiosocket is not None
    ports = [gateway.listen[1], gateway.audiosocket[1]]
    assert service.ports == [f"127.0.0.1:{port}:{port}" for port in ports]
    source, _, target = service.volumes[0].removesuffix(":ro").partition(":")
    assert gateway.ingest_bearer_file == target
    assert (DEPLOY / source).read_text("ascii").strip()
    assert service.healthcheck is not None
    assert service.healthcheck.test[-1] == f"127.0.0.1:{ports[0]}"
    assert int(service.stop_grace_period.removesuffix("s")) >= gateway.ingest_drain_s + 10


def test_traces_have_a_backend() -> None:
    services = _compose().services
    asked = {name for name, service in services.items() if service.profiles == ["traces"]}
    assert asked == {"collector", "jaeger"}
    for name in ("worker-1", "worker-2", "ingest"):
        env = services[name].environment
        assert env["OTEL_TRACES_EXPORTER"] == "${OTEL_TRACES_EXPORTER:-none}"
        assert env["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":-http://collector:4318}")
    source, _, target = services["collector"].volumes[0].removesuffix(":ro").partition(":")
    assert services["collector"].command == ["--config", target]
    config = (DEPLOY / source).read_text("utf-8")
    assert set(re.findall(r"\$\{env:(\w+)\}", config)) == set(services["collector"].environment)


def test_redis_persists_its_data() -> None:
    command = " ".join(_compose().services["redis"].command)
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
