"""`turnbus check` against a real Redis and the local turns server, healthy and faulty."""

import re
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from redis import Redis
from websockets.sync.server import ServerConnection, serve

from schemas import Keys
from tests.support.acl import GuardedRedis, as_user
from tests.support.certificates import Authority, behind_tls
from tests.support.collector import collecting
from tests.support.proxies import ConnectProxy
from worker import build
from worker.admin import Readiness, serve_admin
from worker.cli.main import main
from worker.local.emulator.engines.script import ScriptEngine
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.stt import websocket as stt_socket
from worker.urls import provider_address

KEY = "hunter2"


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture
def stt(
    portal: BlockingPortal, keys: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TurnsServer]:
    """A turns server that accepts the key, and settings that name both."""
    settings = ServerSettings(port=0, api_keys=frozenset({KEY}), max_connections=1)
    serve = TurnsServer.serve(settings, ScriptEngine())
    with portal.wrap_async_context_manager(serve) as server:
        monkeypatch.setenv("TURNBUS_STT_URL", server.url)
        monkeypatch.setenv("CARTESIA_API_KEY", KEY)
        monkeypatch.setenv("TURNBUS_ADMIN_ADDR", "127.0.0.1:0")
        yield server


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> "Check":
    return Check(capsys)


class Check:
    """Runs `turnbus check --json`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.code = -1
        self.details: dict[str, str] = {}

    def __call__(self) -> dict[str, str]:
        """Return the result of each check; keep its details."""
        self.code = main(["check", "--json"])
        shown = self.capsys.readouterr()
        assert shown.err == ""
        assert KEY not in shown.out
        findings = [msgspec.json.decode(line) for line in shown.out.splitlines()]
        self.details = {finding["check"]: finding["detail"] for finding in findings}
        return {finding["check"]: finding["result"] for finding in findings}


ALL_WELL = dict.fromkeys(
    (
        *("settings", "build", "files", "admin", "traces", "metrics"),
        *("redis", "memory", "rights", "service"),
    ),
    "ok",
)


@pytest.mark.usefixtures("stt")
def test_check_passes_when_everything_works(check: Check) -> None:
    assert check() == ALL_WELL
    assert check.code == 0
    assert check.details["service"].startswith("ws://127.0.0.1:")
    assert check.details["build"] == f"turnbus {version('turnbus')}, {build.form()}"


@pytest.mark.usefixtures("stt")
def test_check_prints_one_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", check] for check in ALL_WELL]


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize(
    ("name", "value", "what", "code"),
    [
        ("CARTESIA_API_KEY", "wrong", "fix the key", 1),
        ("CARTESIA_API_KEY", "", "CARTESIA_API_KEY: no API key", 2),
        ("TURNBUS_STT_MODEL", "no-such-model", "fix stt_url, stt_model", 1),
        ("TURNBUS_STT_URL", "ws://127.0.0.1:1/stt", "make stt_url reachable", 1),
    ],
)
def test_check_fails_if_provider_refuses_connection(
    check: Check, monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str, code: int
) -> None:
    monkeypatch.setenv(name, value)
    assert check() == ALL_WELL | {"service": "fail"}
    assert check.code == code
    assert what in check.details["service"]


@pytest.mark.usefixtures("stt")
def test_check_covers_the_gateway_if_it_has_settings(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "bearer"
    file.write_text("secret-word\n")
    monkeypatch.setenv("TURNBUS_INGEST_BEARER_FILE", str(file))
    assert check() == ALL_WELL | {"gateway": "ok"}
    assert check.code == 0
    for name, value, what in (
        ("BASIC_FILE", str(file), "TURNBUS_INGEST_BASIC_FILE: each line must be USER:PASSWORD"),
        ("CHUNK_MS", "7", "TURNBUS_INGEST_CHUNK_MS: must be"),
    ):
        monkeypatch.setenv(f"TURNBUS_INGEST_{name}", value)
        assert check() == ALL_WELL | {"gateway": "fail"}
        assert check.code == 1
        assert check.details["gateway"].startswith(what)


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize(
    ("response", "what"),
    [(b"\xc1\x00", "protocol error"), (b"\x88\x02\x03\xf1", "1009")],
    ids=["broken frame", "close 1009"],
)
def test_check_fails_if_provider_breaks_protocol(
    check: Check, monkeypatch: pytest.MonkeyPatch, response: bytes, what: str
) -> None:
    def answer(ws: ServerConnection) -> None:
        ws.socket.sendall(response)

    with serve(answer, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        monkeypatch.setenv("TURNBUS_STT_URL", f"ws://127.0.0.1:{port}/stt")
        assert check() == ALL_WELL | {"service": "fail"}
        server.shutdown()
    assert check.code == 1
    assert what in check.details["service"]
    assert "make stt_url reachable" in check.details["service"]


@pytest.mark.usefixtures("stt")
def test_check_skips_provider_without_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURNBUS_STT_PROVIDERS", "flux,cartesia")
    monkeypatch.setenv("DEEPGRAM_API_KEY", "")
    assert main(["check"]) == 0
    (skipped, asked) = _services(capsys)
    assert skipped.startswith("warn  service   provider flux: skipped, because it has no API key")
    assert asked.startswith("ok    service   ws://127.0.0.1:")


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize(
    ("key", "model", "line"),
    [
        ("k", "flux-general-multi", "ok    service   ws://127.0.0.1:"),
        ("wrong", "flux-general-en", "fail  service   provider flux: HTTP 401"),
        ("k", "none", "fix stt_flux_url, stt_flux_model or the stt_turn_* settings"),
    ],
)
def test_check_asks_each_provider_with_a_key(
    key: str,
    model: str,
    line: str,
    portal: BlockingPortal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ServerSettings(port=0, provider="flux", api_keys=frozenset({"k"}))
    serve = TurnsServer.serve(settings, ScriptEngine())
    with portal.wrap_async_context_manager(serve) as flux:
        monkeypatch.setenv("TURNBUS_STT_PROVIDERS", "flux,cartesia")
        monkeypatch.setenv("TURNBUS_STT_FLUX_URL", flux.url)
        monkeypatch.setenv("TURNBUS_STT_FLUX_MODEL", model)
        monkeypatch.setenv("DEEPGRAM_API_KEY", key)
        main(["check"])
    first, second = _services(capsys)
    assert line in first
    assert second.startswith("ok    service")


@pytest.mark.usefixtures("keys")
def test_check_warns_of_a_threshold_that_provider_ignores(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = TurnsServer.serve(ServerSettings(port=0, provider="flux"), ScriptEngine())
    with portal.wrap_async_context_manager(serve) as flux:
        monkeypatch.setenv("TURNBUS_ADMIN_ADDR", "127.0.0.1:0")
        monkeypatch.setenv("TURNBUS_STT_PROVIDERS", "flux")
        monkeypatch.setenv("TURNBUS_STT_FLUX_URL", flux.url)
        monkeypatch.setenv("DEEPGRAM_API_KEY", "k")
        monkeypatch.setenv("TURNBUS_STT_TURN_EAGER_END_THRESHOLD", "0.75")
        assert main(["check"]) == 0
    asked, warned = _services(capsys)
    assert asked.startswith("ok    service")
    limit = "provider flux takes a turn_eager_end_threshold of 0.7 at most"
    assert warned.startswith(f"warn  service   {limit}")


def _services(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines about providers."""
    return [line for line in capsys.readouterr().out.splitlines() if " service " in line]


def test_check_warns_if_provider_is_busy(check: Check, stt: TurnsServer) -> None:
    from websockets.sync.client import connect

    url = f"{stt.url}?model=ink-2&encoding=pcm_s16le&sample_rate=16000"
    headers = {"X-API-Key": KEY, "Cartesia-Version": "2026-03-01"}
    with connect(url, additional_headers=headers):
        assert check() == ALL_WELL | {"service": "warn"}
    assert check.code == 0


def test_check_names_proxy_without_password(
    check: Check,
    portal: BlockingPortal,
    stt: TurnsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setattr(stt_socket, "_tls", stt_socket._tls.__wrapped__)
    serve = behind_tls(stt.url, authority.issue("localhost"))
    with (
        portal.wrap_async_context_manager(serve) as url,
        portal.wrap_async_context_manager(ConnectProxy.serve({})) as proxy,
    ):
        port = provider_address(url)[1]
        proxy.known = {f"localhost:{port}": ("127.0.0.1", port)}
        monkeypatch.setenv("TURNBUS_STT_URL", url)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{KEY}@127.0.0.1:{proxy.port}")
        assert check() == ALL_WELL
        assert check.details["service"].endswith(f" through the proxy 127.0.0.1:{proxy.port}")
        proxy.answer = b"HTTP/1.1 407 No\r\n\r\n"
        assert check() == ALL_WELL | {"service": "fail"}
        assert check.details["service"] == (
            f"provider cartesia: the proxy 127.0.0.1:{proxy.port} refuses: "
            "HTTP 407 Proxy Authentication Required; "
            "fix the user and password in HTTPS_PROXY"
        )
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert check() == ALL_WELL
        assert "proxy" not in check.details["service"]


@pytest.mark.usefixtures("stt")
def test_check_fails_if_proxy_is_unusable(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNBUS_STT_URL", "wss://localhost:1/stt")
    monkeypatch.setenv("all_proxy", f"socks5://me:{KEY}@p:1080")
    assert check() == ALL_WELL | {"service": "fail"}
    assert check.details["service"].startswith("all_proxy: SOCKS is not supported; name an HTTP")
    assert check.code == main(["run"]) == 2
    assert check.details["service"] in check.capsys.readouterr().err


def test_check_reports_bad_settings(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNBUS_LEASE_MS", "x")
    assert check() == {"settings": "fail"}
    assert check.code == main(["run"]) == 2
    assert "TURNBUS_LEASE_MS" in check.capsys.readouterr().err


@pytest.mark.usefixtures("stt")
def test_check_fails_if_admin_port_is_in_use(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("TURNBUS_ADMIN_ADDR", f"127.0.0.1:{taken.getsockname()[1]}")
        assert check() == ALL_WELL | {"admin": "fail"}
        assert check.code == main(["run"]) == 2
        assert check.details["admin"] in check.capsys.readouterr().err


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize(
    ("reasons", "state"), [((), "ready"), (("redis: gone",), "not ready (redis: gone)")]
)
def test_check_warns_if_worker_serves_admin_port(
    check: Check,
    portal: BlockingPortal,
    monkeypatch: pytest.MonkeyPatch,
    reasons: tuple[str, ...],
    state: str,
) -> None:
    worker = Readiness(ready=not reasons, reasons=reasons, sessions=1, capacity=9)
    serve = serve_admin(("127.0.0.1", 0), lambda: worker)
    with portal.wrap_async_context_manager(serve) as port:
        address = f"127.0.0.1:{port}"
        monkeypatch.setenv("TURNBUS_ADMIN_ADDR", address)
        assert check() == ALL_WELL | {"admin": "warn"}
    assert check.code == 0
    expected = f"a worker runs here and answers at {address}: {state}, 1 session; another one needs"
    assert check.details["admin"].startswith(expected)


@pytest.mark.usefixtures("stt")
def test_check_fails_if_other_program_serves_admin_port(
    check: Check, stt: TurnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNBUS_ADMIN_ADDR", f"127.0.0.1:{stt.port}")
    assert check() == ALL_WELL | {"admin": "fail"}
    assert "address already in use" in check.details["admin"]
    assert check.code == 2


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize("signal", ["traces", "metrics"])
@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"OTEL_{}_EXPORTER": "jaeger"}, "OTEL_{}_EXPORTER: 'jaeger' is not one of otlp, console"),
        (
            {"OTEL_{}_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://HOST:PORT",
        ),
        (
            {"OTEL_{}_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_{}_ENDPOINT": "http://"},
            "OTEL_EXPORTER_OTLP_{}_ENDPOINT: must be http://HOST:PORT",
        ),
        (
            {"OTEL_{}_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_{}_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_{}_PROTOCOL: 'grpc' is not supported; use http/protobuf",
        ),
    ],
)
def test_check_fails_if_telemetry_cannot_be_sent(
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
    signal: str,
    variables: dict[str, str],
    what: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name.format(signal.upper()), value)
    assert check() == ALL_WELL | {signal: "fail"}
    assert what.format(signal.upper()) in check.details[signal]
    assert check.code == main(["run"]) == 2
    assert check.details[signal] in check.capsys.readouterr().err


@pytest.mark.usefixtures("stt")
def test_check_fails_if_export_interval_is_no_number(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1m")
    assert check() == ALL_WELL | {"metrics": "fail"}
    assert check.details["metrics"].startswith("OTEL_METRIC_EXPORT_INTERVAL: must be a number")
    assert check.code == 2


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_check_warns_if_collector_is_unreachable(
    check: Check, monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv(f"OTEL_{signal.upper()}_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert check() == ALL_WELL | {signal: "warn"}
    assert check.details[signal].startswith("nothing answers at 127.0.0.1:1 ")
    assert check.details[signal].endswith(f"{signal} would be lost")
    assert check.code == 0


@pytest.mark.usefixtures("stt")
def test_check_reports_one_collector_for_both_signals(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        assert check() == ALL_WELL
    where = collector.endpoint.removeprefix("http://")
    assert check.details["traces"] == check.details["metrics"] == f"go to {where}"


@pytest.mark.usefixtures("stt")
def test_check_reports_rejected_collector_certificate(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    authority = Authority(tmp_path)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with collecting(authority.issue("localhost")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        assert check() == ALL_WELL | {"traces": "warn"}
        response = check.details["traces"]
        assert "would be lost: certificate refused: " in response
        assert "OTEL_EXPORTER_OTLP_CERTIFICATE=FILE" in response
        assert check.code == 0
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.file))
        assert check() == ALL_WELL


@pytest.mark.usefixtures("stt")
def test_check_ignores_disabled_telemetry(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "jaeger")
    assert check() == ALL_WELL
    assert check.details["traces"] == check.details["metrics"] == "nothing is sent to a collector"


@pytest.mark.usefixtures("stt")
def test_check_fails_if_redis_is_unreachable(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNBUS_REDIS_URL", f"redis://:{KEY}@127.0.0.1:1/0")
    assert check() == dict.fromkeys(
        ("settings", "build", "files", "admin", "traces", "metrics", "service"), "ok"
    ) | {"redis": "fail"}
    assert check.code == 1
    assert check.details["redis"].startswith("Redis at redis://***@127.0.0.1:1/0: ")


@pytest.mark.usefixtures("stt")
def test_check_warns_if_redis_evicts_keys(
    check: Check, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = GuardedRedis.start(config={"maxmemory-policy": "allkeys-lru"})
    with portal.wrap_async_context_manager(start) as server:
        monkeypatch.setenv("TURNBUS_REDIS_URL", as_user(server.url, "worker"))
        monkeypatch.setenv("TURNBUS_PREFIX", "stt")
        assert check() == ALL_WELL | {"memory": "warn"}
    assert check.code == 0


@pytest.mark.usefixtures("stt")
def test_check_reports_full_redis(
    check: Check, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with portal.wrap_async_context_manager(GuardedRedis.start(maxmemory=1_000)) as server:
        monkeypatch.setenv("TURNBUS_REDIS_URL", server.url)
        assert check() == ALL_WELL | {"rights": "fail"}
    assert re.fullmatch(
        r"XADD: OutOfMemoryError: [^;]*; raise its maxmemory, or make room", check.details["rights"]
    )


@pytest.mark.usefixtures("stt")
def test_check_fails_if_sessions_key_has_wrong_type(check: Check, keys: Keys, bus: Redis) -> None:
    bus.set(keys.sessions, "x")
    assert check() == ALL_WELL | {"rights": "fail"}
    bus.delete(keys.sessions)
    assert check.code == 1
    assert f"another program has the key {keys.sessions}, a string" in check.details["rights"]
    assert "set TURNBUS_PREFIX" in check.details["rights"]


@pytest.mark.usefixtures("stt")
@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        ("~{prefix}:* -xreadgroup -evalsha", ", on keys {prefix}:*: XREADGROUP, EVALSHA"),
        ("~{prefix}:* -@write", ", on keys {prefix}:*: XADD, EXPIRE, XGROUP CREATE"),
        ("~another:*", " the keys ~{prefix}:{{0}}:* ~{prefix}:sessions ~{prefix}:lanes"),
    ],
)
def test_check_names_missing_redis_rights(
    check: Check,
    bus: Redis,
    bus_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    rules: str,
    missing: str,
) -> None:
    given = ["on", f">{KEY}", "+@all", *rules.format(prefix=bus_prefix).split()]
    bus.execute_command("ACL SETUSER", bus_prefix, *given)  # type: ignore[no-untyped-call]
    host = bus.connection_pool.connection_kwargs
    url = f"redis://{bus_prefix}:{KEY}@{host['host']}:{host['port']}/0"
    monkeypatch.setenv("TURNBUS_REDIS_URL", url)
    assert check() == ALL_WELL | {"rights": "fail"}
    bus.acl_deluser(bus_prefix)
    expected = "grant this user" + missing.format(prefix=bus_prefix)
    assert check.details["rights"].startswith(expected)
