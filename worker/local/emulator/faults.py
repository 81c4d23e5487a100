"""What can be made to go wrong, as values; `fault_specs` reads them from text, `plan` applies them.

A fault either strikes once at a moment of the connection, or is a habit of it for life.
"""

from typing import Literal

import msgspec

from worker.local.emulator.messages import Problem

Moment = Literal["handshake", "opened", "mid-turn", "between-turns", "flush", "flushed"]


class Cut(msgspec.Struct, frozen=True):
    """TCP is cut without a close frame: reset, dropping what is on its way, or ended."""

    how: Literal["rst", "fin"] = "rst"


class HalfOpen(msgspec.Struct, frozen=True):
    """Nothing is read, written or answered any more, and TCP stays open."""


class CloseFrame(msgspec.Struct, frozen=True):
    """A close frame."""

    code: int
    reason: str = ""


class InBandError(msgspec.Struct, frozen=True):
    """An `error` and then a close frame; with None the connection goes on."""

    problem: Problem
    close_code: int | None


class HttpRefusal(msgspec.Struct, frozen=True):
    """An HTTP status in answer to the upgrade."""

    problem: Problem


class LateConnected(msgspec.Struct, frozen=True):
    """`connected` comes this many seconds late, None for never.

    What is heard before it is told after it; a `deaf` connection hears nothing before it.
    """

    delay_s: float | None
    deaf: bool = False


class NoTurnEnd(msgspec.Struct, frozen=True):
    """No turn.end is sent."""


class Duplicate(msgspec.Struct, frozen=True):
    """Every turn event is sent twice."""


class Shrink(msgspec.Struct, frozen=True):
    """After each turn.update comes another without its last word."""


class SlowRead(msgspec.Struct, frozen=True):
    """Audio is read at this rate; the rest backs up into the client."""

    bytes_per_s: float


class PaceLimit(msgspec.Struct, frozen=True):
    """Audio that comes faster than `speed` times real time is refused with an in-band 400.

    `burst_s` seconds of audio may come at once. Then comes a close frame; with None the
    connection goes on, without the audio that was refused.
    """

    speed: float
    burst_s: float
    close_code: int | None


ConnectionEnd = Cut | HalfOpen | CloseFrame | InBandError
"""What strikes an open connection; all but an error without a close end it."""
Habit = LateConnected | NoTurnEnd | Duplicate | Shrink | SlowRead | PaceLimit


class Fault(msgspec.Struct, frozen=True):
    """A fault to apply.

    `at` is when it strikes: a moment, or the bytes of audio heard by then; None for a habit.
    It takes the share `probability` of the connections, drawn with `seed` or that of the whole
    plan, and `count` of them at most.
    """

    spec: str
    action: ConnectionEnd | HttpRefusal | Habit
    at: Moment | int | None
    probability: float = 1.0
    count: int | None = None
    seed: int | None = None
