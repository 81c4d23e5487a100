"""OpenTelemetry's own `OTEL_*` variables: cleanup, and one line for each unusable value.

The SDK parses most values. It raises, or logs a warning and continues with another value;
`refusals` converts both to `SettingsError`. `check_variables` covers the values that the SDK
ignores, or that fail only at an export. So `turnbus check` and `turnbus run` report the same lines.
"""

import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
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

OTLP_PREFIXES = ("OTEL_EXPORTER_OTLP_", "OTEL_PYTHON_EXPORTER_OTLP_")
"""Prefixes of the variables that the OTLP exporters read."""

_EXPORTERS: dict[Signal, tuple[str, ...]] = {
    "traces": ("otlp", "console", "none"),
    "metrics": ("otlp", "console", "prometheus", "none"),
}
_MAX_MS = 2**31 - 1


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
    """Raise `SettingsError` if a variable of a signal has a value that the SDK does not reject."""
    exporter, known = exporter_name(signal, env), _EXPORTERS[signal]
    if exporter not in known:
        unknown = f"{exporter!r} is not one of {', '.join(known)}"
        raise SettingsError([f"OTEL_{signal.upper()}_EXPORTER: {unknown}"])
    if exporter in ("none", "prometheus"):
        return
    checks = {**_CHECKS[signal]}
    if exporter == "otlp":
        checks |= {_chosen(signal, option, env): check for option, check in _OTLP_CHECKS.items()}
    faults = []
    for variable in [name for name in env if name.startswith("OTEL_")]:
        value = _value(env, variable)
        try:
            _check_text(value)
            if value and variable in checks:
                checks[variable](value)
        except ValueError as error:
            faults.append(f"{variable}: {error}")
    if exporter == "otlp" and not faults:
        faults += _certificate_faults(signal, env)
    if faults:
        raise SettingsError(faults)


@contextmanager
def refusals(*prefixes: str) -> Iterator[None]:
    """Convert to `SettingsError` what the SDK raises or logs while it reads variables.

    The error names the variables in the SDK's text, else those with a prefix that are set.
    """
    with _sdk_warnings() as texts:
        try:
            yield
        except ModuleNotFoundError:
            texts.insert(0, f"the exporter otlp is not installed; {install_hint('otlp')}")
        except (OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            texts.insert(0, str(error))
    if texts:
        # The SDK would continue with another value; the worker does not.
        text = re.sub(r"(?is)[.,]? (using|defaulting|skipping)\b.*", "", texts[0])
        if "header" in text.lower():  # it may quote a secret
            text = "a header is not valid"
        variables = " and ".join(_named(text, prefixes))
        raise SettingsError([f"{variables}: {text.removeprefix(f'{variables} ')}"])


def _named(text: str, prefixes: tuple[str, ...]) -> list[str]:
    """Return the variables that a text of the SDK is about: by name, or by the last word of it."""
    if named := re.findall("OTEL_[A-Z_]+", text):
        return named
    given = [name for name in os.environ if name.startswith(prefixes)]
    last_words = ((name, name.rpartition("_")[2].lower().rstrip("s")) for name in given)
    return [name for name, word in last_words if word in text.lower()] or given or ["OTEL_*"]


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
        yield f"{certificate}: cannot be used{' with the client key' * bool(key)}: {error.args[-1]}"


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


def _check_number(least: float, most: float) -> Check:
    def check_number(value: str) -> None:
        try:
            if least <= float(value) <= most:
                return
        except ValueError:
            pass
        raise ValueError(f"must be a number from {least:.15g} to {most:.15g}, not {value!r}")

    return check_number


_CHECKS: dict[Signal, dict[str, Check]] = {
    "traces": {"OTEL_BSP_SCHEDULE_DELAY": _check_number(1, _MAX_MS)},
    "metrics": {"OTEL_METRIC_EXPORT_INTERVAL": _check_number(1, _MAX_MS)},
}
_OTLP_CHECKS: dict[str, Check] = {
    "PROTOCOL": _check_protocol,
    "ENDPOINT": _check_endpoint,
    "HEADERS": _check_headers,
    "TIMEOUT": _check_number(0.001, 3_600),
}
