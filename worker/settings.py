"""Settings: `TURNBUS_*` environment variables, over a TOML file, over defaults.

All errors are reported together, one line each, with the source of the value. Secrets are never
printed: an API key is not a setting (`worker.stt.keys` reads it), and Redis URLs are redacted.
"""

import difflib
import re
import reprlib
import socket
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import Meta

from schemas import EntryError, TurnConfig
from schemas.audio import ProviderName
from schemas.validation import describe_type
from worker.errors import SettingsError
from worker.ingest import settings as ingest
from worker.ingest.settings import IngestSettings
from worker.text import CARTESIA_KEY, DEEPGRAM_KEY
from worker.urls import check_redis_url, check_stt_url, host_port, redacted
from worker.values import from_text, from_toml

ENV_PREFIX = "TURNBUS_"
API_KEY_VARIABLE = "CARTESIA_API_KEY"
PROVIDERS: tuple[str, ...] = get_args(ProviderName)
"""Names of the providers that a worker can use."""

Name = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}\Z", description="1 to 128 of A-Z a-z 0-9 . _ : -"),
]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(ge=1, le=604_800)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one worker. The suffix of a duration names its unit."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS), `unix://`; `redis+cluster://` and `redis+sentinel://` (with
    TLS: `rediss+...`)."""
    prefix: Name = "stt"
    """Prefix of every Redis key."""
    worker_id: Name = msgspec.field(default_factory=socket.gethostname)
    """Name of this worker in Redis and in its events."""
    max_sessions: Annotated[int, Meta(ge=1, le=100_000)] = 500
    lease_ms: Annotated[int, Meta(ge=2_000, le=600_000)] = 5_000
    """Time without a heartbeat after which another worker takes the session over. The heartbeat
    interval is one second, so a lease lasts at least two."""
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 25.0
    """Timeout of a stopping worker for open turns to end."""
    stt_providers: Annotated[
        str,
        Meta(
            pattern=rf"^(?i:{'|'.join(PROVIDERS)})(\s*,\s*(?i:{'|'.join(PROVIDERS)}))*\Z",
            description=f"names of providers, separated by commas: {', '.join(PROVIDERS)}",
        ),
    ] = "cartesia"
    """The providers that sessions may use, the preferred one first."""
    stt_failover_s: Annotated[float, Meta(ge=0.5, le=60)] = 2.0
    """Time without a working socket after which a session goes to the next provider."""
    stt_url: str = "wss://api.cartesia.ai/stt/turns/websocket"
    """Address of Cartesia; `stt_model` and `stt_version` are Cartesia's too."""
    stt_model: Annotated[str, Meta(min_length=1, max_length=128, description="a model's name")] = (
        "ink-2"
    )
    """Default model of sessions at Cartesia."""
    stt_version: Annotated[
        str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}\Z", description="a date, YYYY-MM-DD")
    ] = "2026-03-01"
    """API version requested from Cartesia."""
    stt_api_key_file: str = ""
    """Older name of `cartesia_api_key_file`."""
    cartesia_api_key_file: str = ""
    """File that holds Cartesia's key; empty: `CARTESIA_API_KEY` from the environment."""
    stt_flux_url: str = "wss://api.deepgram.com/v2/listen"
    stt_flux_model: Annotated[
        str, Meta(min_length=1, max_length=128, description="a model's name")
    ] = "flux-general-en"
    """Default model of sessions at Flux."""
    deepgram_api_key_file: str = ""
    """File that holds Deepgram's key, for Flux; empty: `DEEPGRAM_API_KEY`."""
    stt_max_connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Maximum open sockets of all workers, at all providers together; 0: unlimited."""
    stt_turn_start_threshold: float | None = None
    stt_turn_eager_end_threshold: float | None = None
    stt_turn_end_threshold: float | None = None
    stt_turn_end_timeout_ms: float | None = None
    replay_speed: Annotated[float, Meta(ge=0, le=100)] = 1.5
    """Speed at which a backlog is sent, as a multiple of real time; 0: unpaced."""
    max_lag_s: Annotated[float, Meta(ge=0, le=604_800)] = 600.0
    """Age at which untranscribed audio is dropped; 0: never."""
    park_s: Annotated[float, Meta(ge=1, le=170)] = 120.0
    """Time without audio after which the worker closes the socket; the provider closes at 180."""
    session_idle_s: Seconds = 900.0
    """Time without audio after which the session ends."""
    turn_update_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 500
    """Interval between `turn.update` events of a text of 1,000 characters; it is proportional to
    the length."""
    turns_retention_s: Annotated[int, Meta(ge=1, le=31_536_000)] = 3_600
    """Age at which turn events are trimmed."""
    turns_maxlen: Count = 1_000_000
    """Maximum turn events kept per lane, regardless of age."""
    retention_s: Annotated[int, Meta(ge=1, le=31_536_000)] = 3_600
    """Time for which Redis keeps the state and tombstone of an ended session."""
    admin_addr: str = "127.0.0.1:8088"
    """`HOST:PORT` of health checks and metrics; empty: off."""
    trace_transcripts: bool = False
    """Whether the spans of turns contain transcripts."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the configured providers, the preferred one first."""
        return tuple(name.strip().lower() for name in self.stt_providers.split(","))

    @property
    def turn_config(self) -> TurnConfig:
        """Default turn detection of sessions."""
        return TurnConfig(**{name: getattr(self, f"stt_{name}") for name in _TURN_TYPES})

    @property
    def admin(self) -> tuple[str, int] | None:
        """Host and port of health checks and metrics; None if they are off."""
        return host_port(self.admin_addr) if self.admin_addr else None

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return every setting; the Redis URL has no password."""
        return [*(msgspec.structs.asdict(self) | {"redis_url": redacted(self.redis_url)}).items()]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Settings({shown})"


class _Given(NamedTuple):
    """One value and the name of its source."""

    label: str
    value: Any
    read: Callable[[Any, object], object]
    """Parser of the value for a type: the environment has only text, TOML has its own types."""


S = TypeVar("S", Settings, IngestSettings)

_TURN_TYPES = {field.name: field.type for field in msgspec.structs.fields(TurnConfig)}
_TYPES: dict[str, Any] = {
    field.name: field.type
    for kind in (Settings, IngestSettings)
    for field in msgspec.structs.fields(kind)
} | {f"stt_{name}": kind for name, kind in _TURN_TYPES.items()}
# Kubernetes sets these in every pod if the name of a Service begins with `turnbus`.
_SERVICE_LINK = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$"
)


class KeyNames(NamedTuple):
    """Where a provider's API key is read from."""

    variable: str
    """Variable that holds the key."""
    file_setting: str
    """Setting that names a file with the key."""

    @property
    def advice(self) -> str:
        """What to do with a key that is missing or in a wrong place."""
        return f"put it into {self.variable}, or into a file that {self.file_variable} names"

    @property
    def file_variable(self) -> str:
        """Variable of `file_setting`."""
        return ENV_PREFIX + self.file_setting.upper()


KEY_NAMES = {
    "cartesia": KeyNames(API_KEY_VARIABLE, "cartesia_api_key_file"),
    "flux": KeyNames("DEEPGRAM_API_KEY", "deepgram_api_key_file"),
}
KEY_ADVICE = KEY_NAMES["cartesia"].advice


def load(env: Mapping[str, str], file: Path | None = None) -> Settings:
    """Read the settings from `env` over the TOML `file` over the defaults.

    Those of the gateway may be set too: their names are known, and their values are not read.
    Raises `SettingsError` with one line per error.
    """
    given, faults = _read(env, file)
    settings = _convert(Settings, given, faults)
    if not faults:
        faults += _turn_faults(settings, given)
    if faults:
        raise SettingsError(faults)
    return settings


def load_ingest(
    env: Mapping[str, str], file: Path | None = None
) -> tuple[Settings, IngestSettings]:
    """Read the settings of a gateway, as `load` does."""
    given, faults = _read(env, file)
    settings = _convert(Settings, given, faults)
    gateway = _convert(IngestSettings, given, faults)
    if not faults:
        faults += _turn_faults(settings, given)
        for name, message in gateway.conflicts():
            label = given[name].label if name in given else _variable(name)
            faults.append(f"{label}: {message}")
    if faults:
        raise SettingsError(faults)
    return settings, gateway


def check_worker_id(settings: Settings) -> None:
    """Raise `SettingsError` if the default worker id, the host name, is not valid.

    Only a worker needs an id; other commands run on such hosts too.
    """
    try:
        msgspec.convert(settings.worker_id, Name)
    except msgspec.ValidationError:
        about = f"host name {reprlib.repr(settings.worker_id)} is not a valid worker id"
        advice = f"set it to {describe_type(Name)}"
        raise SettingsError([f"{_variable('worker_id')}: not set, and {about}; {advice}"]) from None


def key_provider(text: str) -> str | None:
    """Return the provider whose API keys look like a part of the text; None if none does."""
    if CARTESIA_KEY.search(text):
        return "cartesia"
    return "flux" if DEEPGRAM_KEY.search(text) else None


def _read(env: Mapping[str, str], file: Path | None) -> tuple[dict[str, _Given], list[str]]:
    """Return all values that are given, and the errors in their names."""
    faults: list[str] = []
    given = _from_file(file, faults) if file else {}
    return given | _from_env(env, faults), faults


def _convert(kind: type[S], given: Mapping[str, _Given], faults: list[str]) -> S:
    """Return settings with the valid values; append the errors of the others to `faults`."""
    values: dict[str, Any] = {}
    for name, (label, value, read) in given.items():
        if name in kind.__struct_fields__:
            try:
                values[name] = _checked(name, value, read)
            except ValueError as error:
                faults.append(f"{label}: {error}")
    return kind(**values)


def _turn_faults(settings: Settings, given: Mapping[str, _Given]) -> list[str]:
    """Return the error in the order of the turn thresholds, if there is one."""
    try:
        settings.turn_config.check_order()
    except EntryError as error:
        label = given[f"stt_{error.field}"].label
        return [f"{label}: {error.message.replace('`turn_', '`stt_turn_')}"]
    return []


def _from_file(file: Path, faults: list[str]) -> dict[str, _Given]:
    try:
        table = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        fault = "is not UTF-8 text"
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        fault = f"is not TOML: {error}"
    except RecursionError:
        fault = "is nested too deep"
    else:
        unknown = [key for key in table if key not in _TYPES]
        faults += [f"`{key}` in {file}: {_unknown(key.lower(), str)}" for key in unknown]
        known = [key for key in table if key in _TYPES]
        return {key: _Given(f"`{key}` in {file}", table[key], from_toml) for key in known}
    faults.append(f"{file}: {fault}")
    return {}


def _from_env(env: Mapping[str, str], faults: list[str]) -> dict[str, _Given]:
    given = {}
    for variable in sorted(env):
        name = variable[len(ENV_PREFIX) :].lower()
        if name in _TYPES and variable == _variable(name):
            given[name] = _Given(variable, env[variable], from_text)
        elif name in _TYPES and variable.upper() == _variable(name):
            faults.append(f"{variable}: has no effect; names are in capitals: {_variable(name)}")
        elif variable.startswith(ENV_PREFIX) and not _SERVICE_LINK.search(variable):
            faults.append(f"{variable}: {_unknown(name, _variable)}")
    return given


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _unknown(name: str, spell: Callable[[str], str]) -> str:
    if name.endswith("api_key"):
        provider = "flux" if "deepgram" in name or "flux" in name else "cartesia"
        return f"a key is not a setting; {KEY_NAMES[provider].advice}"
    near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX.lower()), _TYPES, n=1)
    return f"no such setting; did you mean {spell(near[0])}?" if near else "no such setting"


def _checked(name: str, value: object, read: Callable[[Any, object], object]) -> object:
    """Return the value converted to its setting's type; raise ValueError if it is invalid."""
    if name == "stt_version" and type(value) is date:  # TOML has dates, without quotation marks
        value = value.isoformat()
    provider = key_provider(value) if isinstance(value, str) else None
    if provider and (name, provider) != ("redis_url", "flux"):  # a password may look like a key
        raise ValueError(f"holds an API key; {KEY_NAMES[provider].advice}")
    if isinstance(value, str) and re.search("[\x00-\x1f\x7f\ud800-\udfff]", value.strip()):
        raise ValueError("holds control characters, or is not UTF-8 text")
    try:
        converted = read(value, _TYPES[name])
    except ValueError:
        shown = "" if name.endswith("_url") else f", not {reprlib.repr(value)}"
        raise ValueError(f"must be {describe_type(_TYPES[name])}{shown}") from None
    if name.endswith("_url"):  # schemes are case-insensitive
        scheme, separator, rest = str(converted).partition("://")
        converted = scheme.lower() + separator + rest if separator else converted
    if check := _CHECKS.get(name):
        check(converted)
    return converted


def _check_admin_addr(address: str) -> None:
    if address:
        host_port(address)


def _check_providers(names: str) -> None:
    each = [name.strip().lower() for name in names.split(",")]
    if len({*each}) < len(each):
        raise ValueError("names a provider twice")


def _check_replay_speed(speed: float) -> None:
    if 0 < speed < 1:
        raise ValueError("must be 0 or at least 1: slower than real time never catches up")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "redis_url": check_redis_url,
    "stt_providers": _check_providers,
    "stt_url": check_stt_url,
    "stt_flux_url": check_stt_url,
    "admin_addr": _check_admin_addr,
    "replay_speed": _check_replay_speed,
    **ingest.CHECKS,
}
