"""Parser for fault specs, for the command line, the control endpoint and tests."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, get_args

from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode

from worker.errors import SettingsError
from worker.local.emulator.faults import (
    CloseFrame,
    ConnectionEnd,
    Cut,
    Duplicate,
    Fault,
    Habit,
    HalfOpen,
    HttpRefusal,
    InBandError,
    LateConnected,
    Moment,
    NoTurnEnd,
    PaceLimit,
    Shrink,
    SlowRead,
)
from worker.local.emulator.messages import Problem, problem_of

GRAMMAR: Final = """\
A fault is KIND[=VALUE][@WHEN][,p=0.1][,count=2][,seed=7]. It applies to the share p of the
connections, drawn with the seed, and to at most count of them.

  cut[=fin]@WHEN           TCP is reset, or ended with fin, without a close frame
  half-open@WHEN           the server reads and writes nothing more; TCP stays open
  close=CODE[@WHEN]        the server sends a close frame
  error=STATUS[@WHEN]      an in-band error, then close 1011 after 5xx and 1008 after 4xx;
                           error=500:1013 closes with another code, error=500:open does not close
  http=STATUS              the upgrade is refused with this HTTP status
  connected=late:3s        connected is sent late; late:3s:deaf discards audio received before it
  connected=never          connected and all other events are never sent
  no-turn-end              no turn.end is sent
  duplicate                every turn event is sent twice
  shrink                   each turn.update is followed by another without its last word
  slow-read=8k/s           audio is read at 8,000 bytes a second
  pace=2.0[:burst=1s]      audio faster than 2.0 x real time, except a burst (default 1 s at once),
                           is discarded: in-band 400, then close 1008; or :CODE, or :open as above

WHEN is a moment, or bytes=N: after N bytes of audio were received.

  handshake                the client requested the upgrade; for cut and half-open only
  opened                   after the upgrade, before connected; the default of error and close
  mid-turn                 after an update of an open turn was sent
  between-turns            after a turn.end was sent
  flush                    the client requested the close; before its last events are sent
  flushed                  after the last events were sent, before close 1000
"""

BURST_S: Final = 1.0

Build = Callable[[Sequence[str]], ConnectionEnd | HttpRefusal | Habit]


def parse_fault(spec: str) -> Fault:
    """Parse a fault spec. Raises SettingsError if it is invalid."""
    head, *options = spec.strip().split(",")
    head, at, when = head.partition("@")
    name, _, value = head.partition("=")
    try:
        kind = _kind(name)
        return Fault(
            spec=spec.strip(),
            action=kind.build(value.split(":") if value else []),
            at=_moment(kind, when) if at else _default_moment(kind),
            **_options(options),
        )
    except _Wrong as wrong:
        raise SettingsError([f"fault {spec!r}: {wrong}"]) from None


def parse_seconds(text: str) -> float:
    """Parse a duration such as `3s` or `500ms`. Raises SettingsError if it is invalid."""
    try:
        return _seconds(text)
    except _Wrong as wrong:
        raise SettingsError([str(wrong)]) from None


class _Wrong(ValueError):  # noqa: N818 - becomes a SettingsError
    pass


class _Kind(NamedTuple):
    build: Build
    moments: tuple[Moment, ...] = ()  # allowed WHENs besides bytes=N; empty: the kind takes no WHEN
    default: Moment | None = None


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise _Wrong(f"the kinds are {', '.join(_KINDS)}")
    return _KINDS[name]


def _default_moment(kind: _Kind) -> Moment | None:
    if kind.moments and kind.default is None:
        raise _Wrong(f"it needs a WHEN: {_moments(kind)}")
    return kind.default


def _moment(kind: _Kind, text: str) -> Moment | int:
    if not kind.moments:
        raise _Wrong("it takes no WHEN")
    if text.startswith("bytes="):
        return _size(text.removeprefix("bytes="))
    if text not in kind.moments:
        raise _Wrong(f"{text!r} is not a valid WHEN; use one of {_moments(kind)}")
    return text


def _moments(kind: _Kind) -> str:
    return ", ".join(f"@{moment}" for moment in (*kind.moments, "bytes=N"))


def _options(options: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in options:
        name, _, text = option.strip().partition("=")
        match name:
            case "p":
                values["probability"] = _share(text)
            case "count":
                values["count"] = _whole(text, 1)
            case "seed":
                values["seed"] = _whole(text, 0)
            case _:
                raise _Wrong(f"the options are p, count and seed, not {name!r}")
    return values


def _cut(values: Sequence[str]) -> Cut:
    match _only(values, "rst"):
        case "rst" | "fin" as how:
            return Cut(how)
        case other:
            raise _Wrong(f"the value must be rst or fin, not {other!r}")


def _close(values: Sequence[str]) -> CloseFrame:
    code = _close_code(_only(values))
    reason = CloseCode(code).name.replace("_", " ").capitalize() if code < 3000 else ""
    return CloseFrame(code, reason)


def _error(values: Sequence[str]) -> InBandError:
    problem = _problem(values[0] if values else "")
    return InBandError(problem, _then(values[1:], 1011 if problem.status >= 500 else 1008))


def _http(values: Sequence[str]) -> HttpRefusal:
    return HttpRefusal(_problem(_only(values)))


def _connected(values: Sequence[str]) -> LateConnected:
    match list(values):
        case ["never"]:
            return LateConnected(None)
        case ["late", delay]:
            return LateConnected(_seconds(delay))
        case ["late", delay, "deaf"]:
            return LateConnected(_seconds(delay), deaf=True)
    raise _Wrong("the value must be late:3s, late:3s:deaf or never")


def _slow_read(values: Sequence[str]) -> SlowRead:
    return SlowRead(_size(_only(values).removesuffix("/s")))


def _pace(values: Sequence[str]) -> PaceLimit:
    speed, *rest = values or [""]
    burst = BURST_S
    if rest and rest[0].startswith("burst="):
        burst = _seconds(rest.pop(0).removeprefix("burst="))
    return PaceLimit(_above_zero(speed), burst, _then(rest, 1008))


def _bare(action: Habit | HalfOpen) -> Build:
    def build(values: Sequence[str]) -> Habit | HalfOpen:
        if values:
            raise _Wrong("it takes no value")
        return action

    return build


def _only(values: Sequence[str], default: str = "") -> str:
    if len(values) > 1:
        raise _Wrong("it takes one value")
    return values[0] if values else default


def _then(values: Sequence[str], default: int) -> int | None:
    """Parse what follows an error: a close code, or `open` for none."""
    if not values:
        return default
    return None if _only(values) == "open" else _close_code(_only(values))


def _close_code(text: str) -> int:
    code = _whole(text, 1000)
    if code not in EXTERNAL_CLOSE_CODES and not 3000 <= code <= 4999:
        raise _Wrong(f"{code} cannot be in a close frame")
    return code


def _problem(text: str) -> Problem:
    status = _whole(text, 400)
    try:
        return problem_of(status)
    except ValueError:
        raise _Wrong(f"{status} is not an HTTP status") from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", text, re.ASCII)
    if match is None:
        raise _Wrong(f"a duration is written 3s or 500ms, not {text!r}")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([km]?)", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        raise _Wrong(f"bytes are written 64000, 64k or 1m, not {text!r}")
    return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]]


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
        raise _Wrong(f"{text!r} is not a whole number from {least}")
    return int(text)


def _above_zero(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) or float(text) == 0:
        raise _Wrong(f"{text!r} is not a number above 0")
    return float(text)


def _share(text: str) -> float:
    if (share := _above_zero(text)) > 1:
        raise _Wrong(f"p is at most 1, not {text}")
    return share


_ANY: Final[tuple[Moment, ...]] = get_args(Moment)
_KINDS: Final = {
    "cut": _Kind(_cut, _ANY),
    "half-open": _Kind(_bare(HalfOpen()), _ANY),
    "close": _Kind(_close, _ANY[1:], "opened"),
    "error": _Kind(_error, _ANY[1:], "opened"),
    "http": _Kind(_http, (), "handshake"),
    "connected": _Kind(_connected),
    "no-turn-end": _Kind(_bare(NoTurnEnd())),
    "duplicate": _Kind(_bare(Duplicate())),
    "shrink": _Kind(_bare(Shrink())),
    "slow-read": _Kind(_slow_read),
    "pace": _Kind(_pace),
}
