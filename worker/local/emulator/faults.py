"""Injectable faults, as values; `fault_specs` parses them, `fault_plan` applies them.

A fault either occurs once, at a moment of the connection, or changes all of the connection.
"""

from typing import Literal

import msgspec

from worker.local.emulator.messages import Problem

Moment = Literal["handshake", "opened", "mid-turn", "between-turns", "flush", "flushed"]


class Cut(msgspec.Struct, frozen=True):
    """TCP is cut without a close frame: reset, dropping data in transit, or ended."""

    how: Literal["rst", "fin"] = "rst"


class HalfOpen(msgspec.Struct, frozen=True):
    """The server reads and writes nothing more, and TCP stays open."""


class CloseFrame(msgspec.Struct, frozen=True):
    """The server sends a close frame."""

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
    that audio.
    """

    delay_s: float | None
    deaf: bool = False


class NoTurnEnd(msgspec.Struct, frozen=True):
    """No turn.end is sent."""


class Duplicate(msgspec.Struct, frozen=True):
    """Every turn event is sent twice."""


class Shrink(msgspec.Struct, frozen=True):
    """Each turn.update is followed by another without its last word."""


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


ConnectionEnd = Cut | HalfOpen | CloseFrame | InBandError
"""Fault of an open connection; all except an error without a close code end it."""
Habit = LateConnected | NoTurnEnd | Duplicate | Shrink | SlowRead | PaceLimit


class Fault(msgspec.Struct, frozen=True):
    """A fault to apply.

    `at` is when the fault occurs: a moment, or a number of received audio bytes; None for a habit.
    The fault applies to the share `probability` of the connections, and to at most `count`. The
    draw uses `seed`, or the seed of the whole set.
    """

    spec: str
    action: ConnectionEnd | HttpRefusal | Habit
    at: Moment | int | None
    probability: float = 1.0
    count: int | None = None
    seed: int | None = None
