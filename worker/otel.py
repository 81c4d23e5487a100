"""Cleanup of `OTEL_*` variables before OpenTelemetry's libraries and redis-py are imported."""

TYPE_CHECKING = False  # as in worker.cli.main
if TYPE_CHECKING:
    from collections.abc import MutableMapping

UNUSED = (
    "OTEL_PROPAGATORS",
    "OTEL_PYTHON_CONTEXT",
    "OTEL_PYTHON_LOGGER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER",
    "OTEL_PYTHON_TRACER_PROVIDER",
)
"""Variables that select parts which turnbus provides itself: it propagates only W3C trace context.
The libraries would load the named parts at import."""


def tidy(env: "MutableMapping[str, str]") -> None:
    """Remove from an environment what OpenTelemetry's libraries cannot use.

    White space around values is stripped. Empty values, which its specification treats as unset,
    and `UNUSED` variables are removed.
    """
    for variable in [name for name in env if name.startswith("OTEL_")]:
        value = env[variable].strip()
        if not value or variable in UNUSED:
            del env[variable]
        elif value != env[variable]:
            env[variable] = value
