"""OpenTelemetry's own `OTEL_*` variables: cleanup, and one line for each unusable value.

The SDK detects an invalid value at import, during setup or at each export. It raises, or logs a
warning and continues with another value. `check_variables` validates the values before, so that
`turnbus check` and `turnbus run` report the same lines, with the names of the variables.
"""

import logging
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Literal, TypeAlias

from worker.errors import SettingsError
from worker.text import install_hint
from worker.urls import check_http_url

Signal: TypeAlias = Literal["traces", "metrics"]
Check: TypeAlias = Callable[[str], object]
"""Raises ValueError if a value is invalid."""

UNUSED = (
    "OTEL_PROPAGATORS",
    "OTEL_PYTHON_CONTEXT",
    "OTEL_PYTHON_LOGGER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER",
    "OTEL_PYTHON_TRACER_PROVIDER",
)
"""Variables that select parts which turnbus provides itself: it propagates only W3C trace context.
The libraries would load the named parts at import."""

_MAX = 2**31 - 1
_BATCH_SIZE, _QUEUE_SIZE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE"
_DEFAULT_BATCH_SIZE, _DEFAULT_QUEUE_SIZE = 512, 2048


def clean_variables(env: MutableMapping[str, str]) -> None:
    """Remove from an environment what OpenTelemetry's libraries cannot use.

    It has to run before they and redis-py are imported. White space around values is stripped.
    Empty values, which the specification treats as unset, and `UNUSED` variables are removed.
    """
    for variable in [name for name in env if name.startswith("OTEL_")]:
        value = env[variable].strip()
        if not value or variable in UNUSED:
            del env[variable]
        elif value != env[variable]:
            env[variable] = value


def exporter_name(signal: Signal, env: Mapping[str, str]) -> str:
    """Return the name of a signal's exporter; `none` if the export is off."""
    if _value(env, "OTEL_SDK_DISABLED").lower() == "true":
        return "none"
    return _value(env, f"OTEL_{signal.upper()}_EXPORTER").lower() or "none"


def check_variables(signal: Signal, env: Mapping[str, str]) -> None:
    """Raise `SettingsError` with a line for every invalid value that affects a signal."""
    exporter = exporter_name(signal, env)
    if exporter in _NO_EXPORTER[signal]:
        return
    checks = _SDK_CHECKS | _SIGNAL_CHECKS[signal]
    if exporter == "otlp":
        checks |= {_chosen(signal, option, env): check for option, check in _OTLP_CHECKS.items()}
    if _value(env, "OTEL_TRACES_SAMPLER").lower().endswith("traceidratio") and signal == "traces":
        checks["OTEL_TRACES_SAMPLER_ARG"] = _check_number(0, 1)
    faults = []
    for variable, check in checks.items():
        if value := _value(env, variable):
            try:
                _check_text(value)
                check(value)
            except ValueError as error:
                faults.append(f"{variable}: {error}")
    if not faults and signal == "traces":
        faults += _queue_faults(env)
    if exporter == "otlp":
        faults += _certificate_faults(signal, env)
    if faults:
        raise SettingsError(faults)


@contextmanager
def sdk_errors_as_settings_errors(signal: Signal) -> Iterator[None]:
    """Convert to `SettingsError` what the SDK raises or logs as a warning during its setup.

    After a warning, the SDK would continue with another value. This covers values that
    `check_variables` accepts but a later version, or another package's plugin, rejects.
    """
    with _sdk_warnings() as texts:
        try:
            yield
        except (ImportError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            texts.insert(0, str(error))
    if texts:
        text = "a header is invalid" if "header" in texts[0].lower() else texts[0]
        text = " ".join(text.split())
        raise SettingsError(
            [f"OTEL_{signal.upper()}_EXPORTER: OpenTelemetry's SDK rejects an OTEL_* value: {text}"]
        )


def not_installed(signal: Signal, error: ImportError) -> SettingsError:
    """Return the error of an OTLP exporter that cannot be imported."""
    missing = f"the exporter otlp is not installed ({error}); {install_hint('otlp')}"
    return SettingsError([f"OTEL_{signal.upper()}_EXPORTER: {missing}"])


def collector_address(signal: Signal, env: Mapping[str, str]) -> tuple[str, int] | None:
    """Return host and port of a signal's OTLP collector; None for other exporters."""
    if exporter_name(signal, env) != "otlp":
        return None
    return check_http_url(_value(env, _chosen(signal, "ENDPOINT", env)) or "http://localhost:4318")


def tls_fault(signal: Signal, env: Mapping[str, str], timeout_s: float) -> ssl.SSLError | None:
    """Return the TLS error of a request to a signal's collector; None if there is none.

    The request uses the exporter's authorities and client certificate.
    """
    endpoint = _value(env, _chosen(signal, "ENDPOINT", env))
    if not endpoint.lower().startswith("https:"):
        return None
    import requests

    authorities, chain, key = _certificates(signal, env).values()
    try:
        requests.get(
            endpoint,
            verify=authorities or True,
            cert=(chain, key) if chain and key else chain or None,
            timeout=timeout_s,
            allow_redirects=False,
        ).close()
    except (requests.RequestException, OSError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        return cause
    return None


def _value(env: Mapping[str, str], variable: str) -> str:
    return env.get(variable, "").strip()


def _chosen(signal: Signal, option: str, env: Mapping[str, str]) -> str:
    """Return the variable that sets an exporter option: the signal's own takes precedence."""
    own, common = (f"OTEL_EXPORTER_OTLP_{part}{option}" for part in (f"{signal.upper()}_", ""))
    return own if _value(env, own) else common


def _certificates(signal: Signal, env: Mapping[str, str]) -> dict[str, str]:
    """Return the files of an exporter by variable: authorities, client certificate, client key."""
    options = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    variables = [_chosen(signal, option, env) for option in options]
    return {variable: _value(env, variable) for variable in variables}


def _queue_faults(env: Mapping[str, str]) -> Iterator[str]:
    """Yield an error if a batch, whose size is valid alone, does not fit into the queue."""
    queue = int(_value(env, _QUEUE_SIZE) or _DEFAULT_QUEUE_SIZE)
    batch = int(_value(env, _BATCH_SIZE) or _DEFAULT_BATCH_SIZE)
    if batch > queue:
        yield (
            f"{_QUEUE_SIZE}: {queue} is less than a batch of {batch}; raise it, "
            f"or set {_BATCH_SIZE} to {queue} or less"
        )


def _certificate_faults(signal: Signal, env: Mapping[str, str]) -> Iterator[str]:
    (trust, authorities), (certificate, chain), (secret, key) = _certificates(signal, env).items()
    context = ssl.create_default_context()
    try:
        if authorities:
            context.load_verify_locations(authorities)
    except OSError as error:
        yield f"{trust}: cannot be used: {error.args[-1]}"
    try:
        if chain:
            # With an empty password: otherwise OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(chain, key or None, "")
        elif key:
            yield f"{secret}: wants a certificate, {certificate}"
    except OSError as error:
        with_key = " with the client key" if key else ""
        yield f"{certificate}: cannot be used{with_key}: {error.args[-1]}"


@contextmanager
def _sdk_warnings() -> Iterator[list[str]]:
    """Collect what OpenTelemetry's libraries log as warnings, instead of logging it."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _check_text(value: str) -> None:
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise ValueError("holds control characters, or is not UTF-8 text")


def _check_protocol(value: str) -> None:
    if value != "http/protobuf":
        raise ValueError(f"{value!r} is not supported; use http/protobuf")


def _check_endpoint(value: str) -> None:
    """Reject a URL that the exporter's HTTP client rejects; it is strict about host names."""
    check_http_url(value)
    try:
        from requests import PreparedRequest
    except ImportError:  # then there is no exporter either
        return
    try:
        PreparedRequest().prepare_url(value, None)
    except ValueError:
        raise ValueError("is not a URL: its host is not a name") from None


def _check_headers(value: str) -> None:
    """Reject headers that the SDK skips, or that HTTP cannot send; a value may be a secret."""
    from opentelemetry.util.re import parse_env_headers

    with _sdk_warnings() as skipped:
        headers = parse_env_headers(value, liberal=True)
    if skipped:
        raise ValueError(
            'must be NAME=VALUE[,NAME=VALUE...], and " ; \\ and what is not ASCII encoded (%22)'
        )
    for name, sent in headers.items():
        token = re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        if not token or not re.fullmatch("[\x20-\x7e\xa0-\xff]*", sent):
            raise ValueError("must be NAME=VALUE[,NAME=VALUE...], of characters that HTTP can send")


def _check_pairs(value: str) -> None:
    """Reject attributes that the SDK skips; a value may be a secret."""
    for pair in value.split(","):
        name, equals, _ = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError("must be KEY=VALUE[,KEY=VALUE...]")


def _check_number(least: float, most: float = _MAX, *, whole: bool = False) -> Check:
    parse, kind = (int, "whole number") if whole else (float, "number")

    def check_number(value: str) -> None:
        try:
            if least <= parse(value) <= most:
                return
        except ValueError:
            pass
        raise ValueError(f"must be a {kind} from {least:.15g} to {most:.15g}, not {value!r}")

    return check_number


def _check_name(*names: str) -> Check:
    def check_name(value: str) -> None:
        if value.lower() not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}")

    return check_name


def _check_plugin(group: str, *known: str, listed: bool = False) -> Check:
    """Check the name of a plugin that packages may provide, or a list of names."""

    def check_plugin(value: str) -> None:
        names = {*known, *(plugin.name for plugin in entry_points(group=group))}
        for name in map(str.strip, value.split(",") if listed else [value]):
            if name and name.lower() not in names:
                installed = ", ".join(sorted(names)) or "none"
                raise ValueError(f"{name!r} is not one of those installed: {installed}")

    return check_plugin


_NO_EXPORTER: dict[Signal, set[str]] = {"traces": {"none"}, "metrics": {"none", "prometheus"}}
_check_count = _check_number(0, whole=True)
_check_positive = _check_number(1, whole=True)
_check_credentials = _check_plugin("opentelemetry_otlp_credential_provider")

_SDK_CHECKS: dict[str, Check] = {
    "OTEL_SERVICE_NAME": _check_text,
    "OTEL_RESOURCE_ATTRIBUTES": _check_pairs,
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _check_plugin(
        "opentelemetry_resource_detector", "*", listed=True
    ),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _check_count,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _check_count,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _check_count,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _check_count,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _check_count,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _check_count,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _check_count,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _check_count,
}
"""Variables of both signals: the metrics exporter imports the tracing SDK, which reads them."""

_SIGNAL_CHECKS: dict[Signal, dict[str, Check]] = {
    "traces": {
        "OTEL_TRACES_EXPORTER": _check_name("otlp", "console", "none"),
        "OTEL_TRACES_SAMPLER": _check_plugin("opentelemetry_traces_sampler"),
        "OTEL_TRACES_SAMPLER_ARG": _check_text,
        "OTEL_BSP_SCHEDULE_DELAY": _check_positive,
        "OTEL_BSP_EXPORT_TIMEOUT": _check_count,
        _QUEUE_SIZE: _check_positive,
        _BATCH_SIZE: _check_positive,
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _check_name("true", "false"),
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": _check_credentials,
    },
    "metrics": {
        "OTEL_METRICS_EXPORTER": _check_name("otlp", "console", "prometheus", "none"),
        "OTEL_METRIC_EXPORT_INTERVAL": _check_number(1),
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _check_name(
            "cumulative", "delta", "lowmemory"
        ),
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _check_name(
            "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
        ),
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER": _check_credentials,
    },
}
_OTLP_CHECKS: dict[str, Check] = {
    "PROTOCOL": _check_protocol,
    "ENDPOINT": _check_endpoint,
    "HEADERS": _check_headers,
    "TIMEOUT": _check_number(0.001, 3_600),
    "COMPRESSION": _check_name("none", "gzip", "deflate"),
}
