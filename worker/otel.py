"""`OTEL_*` variables as OpenTelemetry's libraries find them, redis-py's part too, when imported."""

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
"""They choose parts that turnbus brings itself: the bus carries W3C trace context, and nothing
else. The libraries would look for the parts they name when they are imported."""


def tidy(env: "MutableMapping[str, str]") -> None:
    """Take from an environment what OpenTelemetry's libraries would only stumble over.

    White space around a value is not part of it, an empty value is none (so its specification
    says), and what is `UNUSED` has no effect.
    """
    for variable in [name for name in env if name.startswith("OTEL_")]:
        value = env[variable].strip()
        if not value or variable in UNUSED:
            del env[variable]
        elif value != env[variable]:
            env[variable] = value
