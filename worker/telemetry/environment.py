"""Validation of OpenTelemetry's own `OTEL_*` variables.

The SDK detects an invalid value at import, during setup or at each export. It raises, or logs a
traceback and continues with another value. This module validates each value before the SDK reads
it, so that `turnbus check` and `turnbus run` report the same line with the variable's name.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Literal, TypeAlias
from urllib.parse import unquote

from worker.errors import SettingsError
from worker.urls import check_http_url

Signal: TypeAlias = Literal["traces", "metrics"]
Judge: TypeAlias = Callable[[str], str | None]
"""Validator of a value; returns the error, or None if the value is valid."""

_LARGEST = 2**31 - 1
_BATCH_SIZE, _QUEUE_SIZE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE"
_USUAL_BATCH_SIZE, _USUAL_QUEUE_SIZE = 512, 2048


def named(signal: Signal, env: Mapping[str, str]) -> str:
    """Return the name of a signal's exporter; `none` if the export is off."""
    if _value(env, "OTEL_SDK_DISABLED").lower() == "true":
        return "none"
    return _value(env, f"OTEL_{signal.upper()}_EXPORTER").lower() or "none"


def collector(signal: Signal, env: Mapping[str, str]) -> tuple[str, int] | None:
    """Return host and port of a signal's OTLP collector; None for other exporters.

    Raises `SettingsError` with a line for every invalid value that affects the signal.
    """
    exporter = named(signal, env)
    if exporter in _NO_EXPORTERS[signal]:
        return None
    judges = dict(_SDK)
    if exporter == "otlp":
        judges |= {_chosen(signal, what, env): judge for what, judge in _OTLP.items()}
    judges |= _OF_SIGNAL[signal]
    faults = [
        f"{variable}: {must}"
        for variable, judge in judges.items()
        if (value := _value(env, variable)) and (must := _fault(judge, value))
    ]
    if not faults:
        faults = _misfits(signal, env)
    if faults:
        raise SettingsError(faults)
    if exporter != "otlp":
        return None
    return check_http_url(_value(env, _chosen(signal, "ENDPOINT", env)) or "http://localhost:4318")


def tls_fault(signal: Signal, env: Mapping[str, str], timeout_s: float) -> ssl.SSLError | None:
    """Return the TLS error of a request to a signal's collector; None if there is none.

    The request uses the exporter's authorities and client certificate.
    """
    endpoint, authorities, chain, key = (
        _value(env, _chosen(signal, what, env))
        for what in ("ENDPOINT", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    )
    if not endpoint.lower().startswith("https:"):
        return None
    import requests

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


def _chosen(signal: Signal, what: str, env: Mapping[str, str]) -> str:
    """Return the variable that sets an exporter option: the signal's own takes precedence."""
    own, common = (f"OTEL_EXPORTER_OTLP_{part}{what}" for part in (f"{signal.upper()}_", ""))
    return own if _value(env, own) else common


def _fault(judge: Judge, value: str) -> str | None:
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", value):
        return "holds control characters, or is not UTF-8 text"
    return judge(value)


def _misfits(signal: Signal, env: Mapping[str, str]) -> list[str]:
    """Return the errors of values that are valid alone but not together."""
    faults = []
    if signal == "traces":
        queue = int(_value(env, _QUEUE_SIZE) or _USUAL_QUEUE_SIZE)
        batch = int(_value(env, _BATCH_SIZE) or _USUAL_BATCH_SIZE)
        if batch > queue:
            faults.append(
                f"{_QUEUE_SIZE}: {queue} is less than a batch of {batch}; raise it, "
                f"or set {_BATCH_SIZE} to {queue} or less"
            )
        sampler = _value(env, "OTEL_TRACES_SAMPLER").lower()
        share = _value(env, "OTEL_TRACES_SAMPLER_ARG")
        if sampler.endswith("traceidratio") and share and _number(0, 1)(share):
            faults.append(f"OTEL_TRACES_SAMPLER_ARG: {_number(0, 1)(share)}")
    if named(signal, env) == "otlp":
        key = _chosen(signal, "CLIENT_KEY", env)
        certificate = _chosen(signal, "CLIENT_CERTIFICATE", env)
        chain, secret = _value(env, certificate), _value(env, key)
        if secret and not chain:
            faults.append(f"{key}: wants a certificate, {certificate}")
        elif chain:
            faults += _certificate_faults(certificate, chain, secret)
    return faults


def _certificate_faults(variable: str, chain: str, key: str) -> list[str]:
    try:
        # With an empty password: otherwise OpenSSL would prompt for one on the terminal.
        ssl.create_default_context().load_cert_chain(chain, key or None, "")
    except OSError as error:
        with_key = " with the client key" if key else ""
        return [f"{variable}: cannot be used{with_key}: {error.args[-1]}"]
    return []


def _whole(least: int) -> Judge:
    def judge(value: str) -> str | None:
        try:
            good = least <= int(value) <= _LARGEST
        except ValueError:
            good = False
        return None if good else f"must be a whole number from {least} to {_LARGEST}, not {value!r}"

    return judge


def _number(least: float, most: float) -> Judge:
    def judge(value: str) -> str | None:
        try:
            good = least <= float(value) <= most
        except ValueError:
            good = False
        return None if good else f"must be a number from {least:.15g} to {most:.15g}, not {value!r}"

    return judge


def _one_of(*names: str) -> Judge:
    def judge(value: str) -> str | None:
        return None if value.lower() in names else f"{value!r} is not one of {', '.join(names)}"

    return judge


def _installed(group: str, *known: str, listed: bool = False) -> Judge:
    """Validate the name of a plugin that packages may provide, or a list of names."""

    def judge(value: str) -> str | None:
        names = {*known, *(part.name for part in entry_points(group=group))}
        asked = [name.strip() for name in value.split(",")] if listed else [value]
        missing = [name for name in asked if name and name.lower() not in names]
        if not missing:
            return None
        there = ", ".join(sorted(names)) or "none"
        return f"{missing[0]!r} is not one of those installed: {there}"

    return judge


def _protocol(value: str) -> str | None:
    return None if value == "http/protobuf" else f"{value!r} is not supported; use http/protobuf"


def _endpoint(value: str) -> str | None:
    try:
        check_http_url(value)
    except ValueError as error:
        return str(error)
    return None if _can_be_requested(value) else "is not a URL: its host is not a name"


def _can_be_requested(url: str) -> bool:
    """Return whether the exporter's HTTP client accepts a URL; it is strict about host names."""
    try:
        from requests import PreparedRequest
    except ImportError:  # then there is no exporter either
        return True
    try:
        PreparedRequest().prepare_url(url, None)
    except ValueError:
        return False
    return True


def _headers(value: str) -> str | None:
    """Validate `NAME=VALUE,...`; a value may be a secret and is not printed."""
    for pair in value.split(","):
        name, equals, content = (part.strip() for part in pair.partition("="))
        sent = unquote(content)
        if not pair.strip():
            continue
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            return "must be NAME=VALUE[,NAME=VALUE...]"
        if '"' in content or ";" in content or "\\" in content or not content.isascii():
            return (
                'must be NAME=VALUE[,NAME=VALUE...], and " ; \\ and what is not ASCII encoded (%22)'
            )
        if not re.fullmatch("[\x20-\x7e\xa0-\xff]*", sent):
            return "must be NAME=VALUE[,NAME=VALUE...], of characters that HTTP can send"
    return None


def _pairs(value: str) -> str | None:
    for pair in value.split(","):
        if not pair.partition("=")[1] or not pair.partition("=")[0].strip():
            return "must be KEY=VALUE[,KEY=VALUE...]"
    return None


def _authorities(file: str) -> str | None:
    try:
        ssl.create_default_context().load_verify_locations(cafile=file)
    except OSError as error:
        return f"cannot be used: {error.args[-1]}"
    return None


def _anything(_value: str) -> None:
    return None


_NO_EXPORTERS: dict[Signal, set[str]] = {"traces": {"none"}, "metrics": {"none", "prometheus"}}
_SDK: dict[str, Judge] = {
    "OTEL_SERVICE_NAME": _anything,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _installed(
        "opentelemetry_resource_detector", "*", listed=True
    ),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _whole(0),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _whole(0),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _whole(0),
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _whole(0),
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _whole(0),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _whole(0),
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _whole(0),
    "OTEL_SPAN_LINK_COUNT_LIMIT": _whole(0),
}
"""Variables of both signals: the metrics exporter imports the tracing SDK, which reads them."""

_OF_SIGNAL: dict[Signal, dict[str, Judge]] = {
    "traces": {
        "OTEL_TRACES_EXPORTER": _one_of("otlp", "console", "none"),
        "OTEL_TRACES_SAMPLER": _installed("opentelemetry_traces_sampler"),
        "OTEL_TRACES_SAMPLER_ARG": _anything,
        "OTEL_BSP_SCHEDULE_DELAY": _whole(1),
        "OTEL_BSP_EXPORT_TIMEOUT": _whole(0),
        _QUEUE_SIZE: _whole(1),
        _BATCH_SIZE: _whole(1),
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _one_of("true", "false"),
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": _installed(
            "opentelemetry_otlp_credential_provider"
        ),
    },
    "metrics": {
        "OTEL_METRICS_EXPORTER": _one_of("otlp", "console", "prometheus", "none"),
        "OTEL_METRIC_EXPORT_INTERVAL": _number(1, _LARGEST),
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _one_of(
            "cumulative", "delta", "lowmemory"
        ),
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _one_of(
            "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
        ),
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER": _installed(
            "opentelemetry_otlp_credential_provider"
        ),
    },
}
_OTLP: dict[str, Judge] = {
    "PROTOCOL": _protocol,
    "ENDPOINT": _endpoint,
    "HEADERS": _headers,
    "TIMEOUT": _number(0.001, 3_600),
    "COMPRESSION": _one_of("none", "gzip", "deflate"),
    "CERTIFICATE": _authorities,
}
