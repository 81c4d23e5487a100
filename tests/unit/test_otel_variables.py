"""`OTEL_*` variables: an unusable value gives one error line, and no log record of the SDK."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.util.re import parse_env_headers

from tests.support.certificates import Authority
from tests.support.polling import PATIENCE_S
from worker import telemetry
from worker.errors import SettingsError
from worker.telemetry.environment import (
    UNUSED,
    Signal,
    clean_variables,
    sdk_errors_as_settings_errors,
)
from worker.telemetry.otlp import metric_push

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

LIMITS = [
    f"OTEL_{what}_LIMIT"
    for what in (
        *("ATTRIBUTE_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT"),
        *("SPAN_ATTRIBUTE_COUNT", "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT"),
        *("ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_VALUE_LENGTH"),
    )
]
OF_TRACES = [
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
]
OF_METRICS = [
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_METRICS_EXEMPLAR_FILTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER",
]
OF_OTLP = [
    f"OTEL_EXPORTER_OTLP_{signal}{what}"
    for signal in ("", "TRACES_", "METRICS_")
    for what in (
        *("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY", "COMPRESSION", "ENDPOINT"),
        *("HEADERS", "INSECURE", "PROTOCOL", "TIMEOUT"),
    )
]
COMMON = [
    *UNUSED,
    "OTEL_CONFIG_FILE",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_LOG_LEVEL",
    "OTEL_PYTHON_ID_GENERATOR",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
]
VARIABLES = [*LIMITS, *OF_TRACES, *OF_METRICS, *OF_OTLP, *COMMON]

VALUES = st.sampled_from(
    [
        *"""
        0 1 -1 256 512 4096 2147483648 1e3 1.5 nan inf unset none true on None x x=y
        x=y, = , a=b=c otlp console prometheus otlp,console OTLP grpc http/json gzip
        traceidratio parentbased_traceidratio always_off jaeger_remote xray
        http://127.0.0.1:1 HTTP://127.0.0.1:1 http://\u2603:1 http:// http://h:99999
        h:4317 http://a..b https://[::1
        http://[::1]:4318 http://u:p@h:1/x?y#z /nonexistent / /dev/null a=%0d%0a delta
        lowmemory cumulative base2_exponential_bucket_histogram os,process *
        contextvars_context sdk_tracer_provider tracecontext b3 trace_based
        """.split(),
        *("", " ", "a b", "authorization=Bearer x", 'a="b"', "9" * 400),
        *("ü=1", "a=ü", "\udcff", "a\nb", "\x1b[2J"),
    ]
)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """Set these `OTEL_*` variables and no others, as the command line leaves them."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    os.environ.update(variables)
    clean_variables(os.environ)
    try:
        yield dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def faults(variables: dict[str, str]) -> list[str]:
    """Set up the export of both signals, as `turnbus run` does; return the errors of variables."""
    records, provider = Records(), None
    found: list[str] = []
    logging.getLogger().addHandler(records)
    try:
        with environment(variables) as env:
            try:
                provider = telemetry.tracer_provider("w", env)
            except SettingsError as error:
                found += error.problems
            if provider is not None:
                with provider.get_tracer("t").start_as_current_span("s") as span:
                    span.set_attribute("a", "b")
                    span.add_event("e", {"c": "d"})
            try:
                metric_push("w", env)
            except SettingsError as error:
                found += error.problems
    finally:
        logging.getLogger().removeHandler(records)
        if provider is not None:  # Nothing listens at the endpoints: the span is dropped.
            for processor in provider._active_span_processor._span_processors:
                processor.span_exporter.shutdown()  # type: ignore[attr-defined]
            provider.shutdown()
    # A limit that the values ask for is applied, and a batch of one span is exported at once: the
    # SDK logs both.
    expected = re.compile(r".*, truncating\.|(Transient error|Failed to export) .*")
    assert [line for line in records.messages if not expected.fullmatch(line)] == []
    return found


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "256"},
            "OTEL_BSP_MAX_QUEUE_SIZE: 256 is less than a batch of 512; raise it, or set OTEL_BSP_",
        ),
        (
            {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"},
            "OTEL_BSP_MAX_QUEUE_SIZE: 2048 is less than a batch of 4096; raise it, or set OTEL_BS",
        ),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
            "OTEL_BSP_MAX_QUEUE_SIZE: must be a whole number from 1 to 2147483647, not '0'",
        ),
        ({"OTEL_BSP_SCHEDULE_DELAY": "5s"}, "OTEL_BSP_SCHEDULE_DELAY: must be a whole number"),
        *[
            ({"OTEL_BSP_EXPORT_TIMEOUT": value}, "OTEL_BSP_EXPORT_TIMEOUT: must be a whole number")
            for value in ("x", "-1")
        ],
        *[({name: "-1"}, f"{name}: must be a whole number from 0 to") for name in LIMITS],
        (
            {"OTEL_TRACES_SAMPLER": "xray"},
            "OTEL_TRACES_SAMPLER: 'xray' is not one of those installed: always_off, always_on, ",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not ",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not ",
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "a=b,hunter2"},
            "OTEL_RESOURCE_ATTRIBUTES: must be KEY=VALUE[,KEY=VALUE...]",
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=\udcff"}, "OTEL_RESOURCE_ATTRIBUTES: holds control char"),
        (
            {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel,k8s"},
            "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS: 'k8s' is not one of those installed: *, ",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not one of otlp"),
        ({"OTEL_METRICS_EXPORTER": "x"}, "OTEL_METRICS_EXPORTER: 'x' is not one of otlp"),
        (
            {"OTEL_METRIC_EXPORT_INTERVAL": "0"},
            "OTEL_METRIC_EXPORT_INTERVAL: must be a number",
        ),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "inf"}, "OTEL_METRIC_EXPORT_INTERVAL: must be a number"),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "x"},
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: 'x' is not one of cumulative, ",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, "OTEL_EXPORTER_OTLP_TIMEOUT: must be a number from"),
        ({"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "5s"}, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: must be"),
        (
            {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
            "OTEL_EXPORTER_OTLP_COMPRESSION: 'zstd' is not one of none, gzip, deflate",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not sup"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "h:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:99999"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://HOST:PORT or https://HOST:PORT; the port",
        ),
        *[
            ({"OTEL_SPAN_EVENT_COUNT_LIMIT": value} | sampler, "OTEL_SPAN_EVENT_COUNT_LIMIT: must")
            for value in ("unset", "9" * 20, "9" * 400)
            for sampler in (
                {},
                {
                    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                    "OTEL_TRACES_SAMPLER_ARG": "0",
                },
            )
        ],
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "9" * 400}, "OTEL_BSP_MAX_QUEUE_SIZE: must be a whole num"),
        *[
            (
                {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{host}:4318"},
                "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL: its host is not a name",
            )
            for host in ("\u2603.net", "*")
        ],
        ({"OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS: must be NAME="),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "a=x%0ahunter2"},
            "OTEL_EXPORTER_OTLP_HEADERS: must be NAM",
        ),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot be used: No such file or directory",
        ),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/dev/null"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot"),
        (
            {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/nonexistent"},
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: cannot be used: No such file or directory",
        ),
        (
            {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/nonexistent"},
            "OTEL_EXPORTER_OTLP_CLIENT_KEY: wants a certificate, OTEL_EXPORTER_OTLP_CLIENT_CERT",
        ),
        (
            {"OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": "x"},
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER: 'x' is not one of those",
        ),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_unusable_value_gives_one_line(variables: dict[str, str], fault: str) -> None:
    exporters = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "otlp"}
    found = set(faults(exporters | variables))
    assert len(found) == 1
    (message,) = found
    assert message.startswith(fault)
    assert "hunter2" not in message


def test_usable_values_are_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shown = authority.issue("worker")
    variables = {
        "OTEL_TRACES_EXPORTER": " OTLP ",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_BSP_MAX_QUEUE_SIZE": "256",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "256",
        "OTEL_BSP_SCHEDULE_DELAY": "",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "0",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=a%20b,x=",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process,os",
        "OTEL_EXPORTER_OTLP_ENDPOINT": " HTTP://127.0.0.1:1 ",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x,other=a b",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.file),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(shown.chain),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(shown.key),
        "OTEL_PYTHON_TRACER_PROVIDER": "nonsense",
        "OTEL_PROPAGATORS": "nonsense",
    }
    assert faults(variables) == []


def test_unusable_values_are_reported_together() -> None:
    variables = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_BSP_MAX_QUEUE_SIZE": "x",
        "OTEL_TRACES_SAMPLER": "traceidratio,always_on,x_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "7",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/nonexistent",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "-1",
    }
    names = {fault.partition(":")[0] for fault in faults(variables)}
    assert names == variables.keys() - {"OTEL_TRACES_EXPORTER"}


def test_sdk_text_about_headers_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught, sdk_errors_as_settings_errors("traces"):
        parse_env_headers("hunter2", liberal=True)
    (fault,) = caught.value.problems
    assert fault.startswith("OTEL_TRACES_EXPORTER: ")
    assert "hunter2" not in fault


@pytest.mark.parametrize("signal", ["traces", "metrics"])
@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError])
def test_exporter_that_cannot_be_imported_is_reported(
    signal: Signal, error: type[ImportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, *_args: object) -> None:
        raise error("cannot import name 'runtime_version'")

    exporter = f"opentelemetry.exporter.otlp.proto.http.{signal.removesuffix('s')}_exporter"
    monkeypatch.delitem(sys.modules, exporter, raising=False)
    monkeypatch.setattr("importlib._bootstrap._find_spec", fail)
    (fault,) = faults({f"OTEL_{signal.upper()}_EXPORTER": "otlp"})
    assert fault.startswith(f"OTEL_{signal.upper()}_EXPORTER: the exporter otlp is not installed (")
    assert "runtime_version" in fault


@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError])
def test_import_error_of_a_plugin_does_not_blame_the_exporter(error: type[ImportError]) -> None:
    with pytest.raises(SettingsError) as caught, sdk_errors_as_settings_errors("traces"):
        raise error("No module named 'plugin'")
    (fault,) = caught.value.problems
    assert fault.startswith("OTEL_TRACES_EXPORTER: ")
    assert fault.endswith("No module named 'plugin'")


def test_unrelated_variables_are_not_checked() -> None:
    variables = {"OTEL_TRACES_EXPORTER": "console", "OTEL_FOO": "a\nb"}
    assert faults(variables | {"OTEL_EXPORTER_OTLP_HEADERS": "a\nb"}) == []


def test_variables_are_ignored_without_export() -> None:
    assert faults(dict.fromkeys(LIMITS, "-1") | {"OTEL_BSP_MAX_QUEUE_SIZE": "x"}) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    st.sampled_from(["console", "otlp", "none"]),
    st.dictionaries(st.sampled_from(VARIABLES), VALUES, max_size=3),
)
def test_any_values_are_refused_or_usable(exporter: str, variables: dict[str, str]) -> None:
    exporters = {"OTEL_TRACES_EXPORTER": exporter, "OTEL_METRICS_EXPORTER": exporter}
    for fault in faults(exporters | variables):
        assert re.match(r"OTEL_[A-Z_]+: \S", fault)
        assert "\n" not in fault


def run(command: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command that finds no Redis and no provider."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {
        "TURNBUS_REDIS_URL": "redis://127.0.0.1:1/0",
        "TURNBUS_STT_URL": "ws://127.0.0.1:1/stt",
        "TURNBUS_ADMIN_ADDR": "",
        "CARTESIA_API_KEY": "k",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()],
        capture_output=True,
        text=True,
        env=env | variables,
        timeout=PATIENCE_S,
        check=False,
    )


# The worker would wait for Redis. It ends where it would begin to serve.
PROGRAM = """
import sys
import worker.cli.command
from worker.cli.main import main
if "run" in sys.argv:
    worker.cli.command.run_async = lambda main: 0
sys.exit(main())
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_BSP_MAX_QUEUE_SIZE": "256"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
        {"OTEL_PYTHON_CONTEXT": "nonsense"},
        {"OTEL_PYTHON_TRACER_PROVIDER": "nonsense"},
        {"OTEL_PROPAGATORS": "nonsense"},
        {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "nan"},
        {"OTEL_RESOURCE_ATTRIBUTES": "nonsense"},
        {"OTEL_ATTRIBUTE_COUNT_LIMIT": "x", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_check_and_run_agree_on_values(variables: dict[str, str]) -> None:
    variables = {"OTEL_TRACES_EXPORTER": "console"} | variables
    check, ran = run("check", variables), run("run", variables)
    assert (check.returncode == 2) == (ran.returncode == 2) == bool(faults(variables))
    assert "Traceback" not in check.stdout + check.stderr + ran.stdout + ran.stderr
    if ran.returncode == 2:
        for line in ran.stderr.splitlines():
            assert line.removeprefix("turnbus: ") in check.stdout


@pytest.mark.parametrize("command", ["sessions", "dead", "watch", "end s", "drain w"])
def test_commands_without_telemetry_ignore_variables(command: str) -> None:
    done = run(command, dict.fromkeys(LIMITS, "-1") | dict.fromkeys(UNUSED, "nonsense"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnbus: Redis at ")


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES, max_size=3))
def test_check_and_run_agree_on_any_values(variables: dict[str, str]) -> None:
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "otlp"}
    test_check_and_run_agree_on_values(exporters | variables)
