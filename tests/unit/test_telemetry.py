"""Where telemetry goes: OpenTelemetry's own variables, and what becomes of wrong ones."""

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
def test_nothing_is_exported_unless_asked_for(env: dict[str, str]) -> None:
    telemetry.configure("w1", env)
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    telemetry.shut_down()


def test_an_exporter_nobody_knows_is_a_fault() -> None:
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


def test_the_console_gets_what_was_buffered() -> None:
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


def test_the_service_may_be_named_otherwise() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "calls"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"service.name": "calls"' in run.stdout
