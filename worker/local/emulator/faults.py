"""Injectable faults, as values and as text, for the command line, the control endpoint and tests.

A fault either occurs once, at a moment of the connection, or changes all of the connection.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode

from worker.errors import SettingsError
from worker.local.emulator.engines.base import EventKind
from worker.local.emulator.messages import Problem, problem_of

GRAMMAR: Final = """\
A fault is KIND[=VALUE][@WHEN][,p=0.1][,count=2][,seed=7]. It applies to the share p of the
connections, drawn with the seed, and to at most count of them.

  cut[=fin]@WHEN           TCP is reset, or ended with fin, without a close frame
  half-open@WHEN           the server reads and writes nothing more; TCP stays open
  stall@WHEN               the server reads on and answers pings, but sends no message any more
  close=CODE[@WHEN]        the server sends a close frame; close=none sends one without a code
  error=STATUS[@WHEN]      an in-band error, then close 1011 after 5xx and 1008 after 4xx;
                           error=500:1013 closes with another code, error=500:none without one,
                           error=500:open does not close
  http=STATUS              the upgrade is refused with this HTTP status
  connected=late:3s        connected is sent late; late:3s:deaf discards audio received before it
  connected=never          connected and all other events are never sent
  connected=skip           connected is not sent, all other events are
  no-turn-end              no turn.end is sent, as if the turn were not over: flux does not count
                           it, and does not reply that there is none
  lose=KIND[:KIND]         no message of this kind is sent, such as lose=turn.start:turn.end
  ignore=TYPE              text messages of this type, such as ForceEndTurn, have no effect
  duplicate                every turn event is sent twice
  shrink                   each turn.update is followed by another without its last word
  reorder                  each turn.update is sent after the turn event that follows it
  window-jitter=200ms      flux: audio_window_start moves by up to this between messages
  slow-read=8k/s           audio is read at 8,000 bytes a second
  pace=2.0[:burst=1s]      audio faster than 2.0 x real time, except a burst (default 1 s at once),
                           is discarded: in-band 400, then close 1008; or :CODE, or :open as above

WHEN is a moment, or bytes=N: after N bytes of audio were received. For cut it may be sent=N: after
N bytes of messages were sent, also inside a message; with cut=fin the client receives that part.

  handshake                the client requested the upgrade; for cut and half-open only
  opened                   after the upgrade, before connected; the default of error and close
  mid-turn                 after an update of an open turn was sent
  between-turns            after a turn.end was sent
  flush                    the client requested the close; before its last events are sent
  flushed                  after the last events were sent, before close 1000
"""


Moment = Literal["handshake", "opened", "mid-turn", "between-turns", "flush", "flushed"]


class Cut(msgspec.Struct, frozen=True):
    """TCP is cut without a close frame: reset, dropping data in transit, or ended."""

    how: Literal["rst", "fin"] = "rst"


class HalfOpen(msgspec.Struct, frozen=True):
    """The server reads and writes nothing more, and TCP stays open."""


class Stall(msgspec.Struct, frozen=True):
    """The server reads on and answers pings, but sends no message any more."""


class CloseFrame(msgspec.Struct, frozen=True):
    """The server sends a close frame, without a code if the code is 1005."""

    code: int
    reason: str = ""


class InBandError(msgspec.Struct, frozen=True):
    """The server sends an `error`, then a close frame; with None the connection stays open."""

    problem: Problem
    close_code: int | None


class HttpRefusal(msgspec.Struct, frozen=True):
    """The server answers the upgrade with an HTTP error status."""

    problem: Problem


class LateConnected(msgspec.Struct, frozen=True):
    """`connected` is sent this many seconds late, None for never.

    Events of audio received before `connected` are sent after it. A `deaf` connection discards
    that audio. A `skipped` one is never sent, but the other events are.
    """

    delay_s: float | None
    deaf: bool = False
    skipped: bool = False


class NoTurnEnd(msgspec.Struct, frozen=True):
    """No turn.end is sent, as if the turn were not over."""


class LostMessages(msgspec.Struct, frozen=True):
    """Messages of these kinds are not sent, as if they were lost."""

    kinds: tuple[EventKind, ...]


class IgnoredCommand(msgspec.Struct, frozen=True):
    """Text messages of this type have no effect, and no answer."""

    type: str


class Duplicate(msgspec.Struct, frozen=True):
    """Every turn event is sent twice."""


class Shrink(msgspec.Struct, frozen=True):
    """Each turn.update is followed by another without its last word."""


class Reorder(msgspec.Struct, frozen=True):
    """Each turn.update is sent after the turn event that follows it."""


class WindowJitter(msgspec.Struct, frozen=True):
    """The start of the audio window moves by up to `most_s` between messages."""

    most_s: float


class SlowRead(msgspec.Struct, frozen=True):
    """Audio is read at this rate; TCP backpressure delays the client."""

    bytes_per_s: float


class PaceLimit(msgspec.Struct, frozen=True):
    """Audio faster than `speed` times real time is rejected with an in-band 400.

    `burst_s` seconds of audio may arrive at once. A close frame follows the error. If the code is
    None, the connection stays open without the rejected audio.
    """

    speed: float
    burst_s: float
    close_code: int | None


ConnectionEnd = Cut | HalfOpen | Stall | CloseFrame | InBandError
"""Fault of an open connection; all except a stall and an error without a close code end it."""
Habit = (
    LateConnected
    | NoTurnEnd
    | LostMessages
    | IgnoredCommand
    | Duplicate
    | Shrink
    | Reorder
    | WindowJitter
    | SlowRead
    | PaceLimit
)


class Sent(msgspec.Struct, frozen=True):
    """After this many bytes of messages were sent."""

    size: int


class Fault(msgspec.Struct, frozen=True):
    """A fault to apply.

    `at` is when the fault occurs: a moment, a number of received audio bytes, or `Sent`; None for a
    habit. The fault applies to the share `probability` of the connections, and to at most `count`.
    The draw uses `seed`, or the seed of the whole set.
    """

    spec: str
    action: ConnectionEnd | HttpRefusal | Habit
    at: Moment | int | Sent | None
    probability: float = 1.0
    count: int | None = None
    seed: int | None = None


def parse_fault(spec: str) -> Fault:
    """Parse a fault spec. Raises SettingsError if it is invalid."""
    try:
        return _parse(spec.strip())
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
    build: Callable[..., ConnectionEnd | HttpRefusal | Habit]  # of the values, which are texts
    most_values: int | None = None
    moments: tuple[Moment, ...] = ()  # allowed WHENs besides bytes=N; empty: the kind takes no WHEN
    default: Moment | None = None


def _parse(spec: str) -> Fault:
    head, *options = spec.split(",")
    head, has_when, when = head.partition("@")
    name, _, value = head.partition("=")
    if name not in _KINDS:
        raise _Wrong(f"the kinds are {', '.join(_KINDS)}")
    kind = _KINDS[name]
    values = value.split(":") if value else []
    if kind.most_values is not None and len(values) > kind.most_values:
        raise _Wrong(f"it takes {'one' if kind.most_values else 'no'} value")
    action = kind.build(*values)
    at = _moment(kind, when) if has_when else kind.default
    if kind.moments and at is None:
        raise _Wrong(f"it needs a WHEN: {_moments(kind)}")
    return Fault(spec, action, at, **dict(map(_option, options)))


def _moment(kind: _Kind, text: str) -> Moment | int | Sent:
    if not kind.moments:
        raise _Wrong("it takes no WHEN")
    if text.startswith("bytes="):
        return _size(text.removeprefix("bytes="))
    if text.startswith("sent=") and kind.build is _cut:
        return Sent(_size(text.removeprefix("sent=")))
    if text not in kind.moments:
        raise _Wrong(f"{text!r} is not a valid WHEN; use one of {_moments(kind)}")
    return text


def _moments(kind: _Kind) -> str:
    return ", ".join(f"@{moment}" for moment in (*kind.moments, "bytes=N"))


def _option(option: str) -> tuple[str, Any]:
    name, _, text = option.strip().partition("=")
    match name:
        case "p":
            return "probability", _share(text)
        case "count":
            return "count", _whole(text, 1)
        case "seed":
            return "seed", _whole(text, 0)
    raise _Wrong(f"the options are p, count and seed, not {name!r}")


def _cut(how: str = "rst") -> Cut:
    match how:
        case "rst" | "fin":
            return Cut(how)
    raise _Wrong(f"the value must be rst or fin, not {how!r}")


def _close(code: str = "") -> CloseFrame:
    number = _close_code(code)
    named = number < 3000 and number != CloseCode.NO_STATUS_RCVD
    reason = CloseCode(number).name.replace("_", " ").capitalize() if named else ""
    return CloseFrame(number, reason)


def _error(status: str = "", *then: str) -> InBandError:
    problem = _problem(status)
    return InBandError(problem, _then(then, 1011 if problem.status >= 500 else 1008))


def _http(status: str = "") -> HttpRefusal:
    return HttpRefusal(_problem(status))


def _connected(*values: str) -> LateConnected:
    match values:
        case ("never",):
            return LateConnected(None)
        case ("skip",):
            return LateConnected(0, skipped=True)
        case ("late", delay):
            return LateConnected(_seconds(delay))
        case ("late", delay, "deaf"):
            return LateConnected(_seconds(delay), deaf=True)
    raise _Wrong("the value must be late:3s, late:3s:deaf, never or skip")


def _ignore(kind: str = "") -> IgnoredCommand:
    if not re.fullmatch(r"[A-Za-z]{1,40}", kind):
        raise _Wrong(f"the value must be the type of a message, such as close, not {kind!r}")
    return IgnoredCommand(kind)


def _lose(*kinds: str) -> LostMessages:
    lost = tuple(kind for kind in get_args(EventKind) if kind in kinds and kind != "progress")
    if not kinds or len(lost) != len(kinds):
        raise _Wrong("it takes kinds of turn events, such as turn.start:turn.end")
    return LostMessages(lost)


def _window_jitter(most: str = "") -> WindowJitter:
    return WindowJitter(_seconds(most))


def _slow_read(rate: str = "") -> SlowRead:
    return SlowRead(_size(rate.removesuffix("/s")))


def _pace(speed: str = "", *rest: str) -> PaceLimit:
    burst_s = 1.0
    if rest and rest[0].startswith("burst="):
        burst_s = _seconds(rest[0].removeprefix("burst="))
        rest = rest[1:]
    return PaceLimit(_above_zero(speed), burst_s, _then(rest, 1008))


def _then(values: Sequence[str], default: int) -> int | None:
    """Parse what follows an error: a close code, or `open` for none."""
    match values:
        case []:
            return default
        case ["open"]:
            return None
        case [code]:
            return _close_code(code)
    raise _Wrong("it takes one value")


def _close_code(text: str) -> int:
    if text == "none":
        return CloseCode.NO_STATUS_RCVD
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
    "cut": _Kind(_cut, 1, _ANY),
    "half-open": _Kind(HalfOpen, 0, _ANY),
    "stall": _Kind(Stall, 0, _ANY[1:]),
    "close": _Kind(_close, 1, _ANY[1:], "opened"),
    "error": _Kind(_error, None, _ANY[1:], "opened"),
    "http": _Kind(_http, 1, (), "handshake"),
    "connected": _Kind(_connected),
    "no-turn-end": _Kind(NoTurnEnd, 0),
    "lose": _Kind(_lose),
    "ignore": _Kind(_ignore, 1),
    "duplicate": _Kind(Duplicate, 0),
    "shrink": _Kind(Shrink, 0),
    "reorder": _Kind(Reorder, 0),
    "window-jitter": _Kind(_window_jitter, 1),
    "slow-read": _Kind(_slow_read, 1),
    "pace": _Kind(_pace),
}
