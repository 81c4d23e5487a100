"""Telemetry destinations: OpenTelemetry's own variables, and errors for wrong ones."""

import os
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from worker import telemetry
from worker.errors import SettingsError


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": " none "},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_export_is_disabled_by_default(env: dict[str, str]) -> None:
    telemetry.configure("w1", env)
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    telemetry.shut_down()


def test_unknown_exporter_is_refused() -> None:
    with pytest.raises(SettingsError, match="'jaeger' is not one of otlp, console, none"):
        telemetry.configure("w1", {"OTEL_TRACES_EXPORTER": "jaeger"})


PROGRAM = """
from worker import telemetry
from worker.telemetry import traces
telemetry.configure("w1")
session = traces.SessionTrace("s1", None, None)
session.turn_started(0, 1.0)
session.turn_ended("model", 2.0, "secret")
telemetry.shut_down()
"""


def test_console_exporter_flushes_buffer() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"turnbus.turn.end_reason": "model"' in run.stdout
    assert '"service.name": "turnbus"' in run.stdout
    assert run.stderr == ""


def test_service_name_can_be_changed() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "calls"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"service.name": "calls"' in run.stdout
