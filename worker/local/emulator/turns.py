"""Order of turn events, enforced in one place between engine and socket.

            connected
                |
      +------- idle <-------------------+
      |  turn.start                     |
      v                                 |
    speaking -- turn.end ---------------+
      |  ^  turn.update*                |
      |  | turn.resume                  |
      v  | turn.eager_end               |
    eager_ended -- turn.end ------------+

Every transcript of a turn begins with the previous one.
"""

from typing import Final, Literal

from worker.local.emulator.engines.base import EngineEvent, EventKind

State = Literal["idle", "speaking", "eager_ended"]

TRANSITIONS: Final[dict[tuple[State, EventKind], State]] = {
    ("idle", "turn.start"): "speaking",
    ("speaking", "turn.update"): "speaking",
    ("speaking", "turn.eager_end"): "eager_ended",
    ("speaking", "turn.end"): "idle",
    ("eager_ended", "turn.resume"): "speaking",
    ("eager_ended", "turn.end"): "idle",
}
_BARE: Final[frozenset[EventKind]] = frozenset({"turn.start", "turn.resume"})


class EngineFault(RuntimeError):  # noqa: N818 - named as in `worker.errors`
    """The engine emitted an event that the protocol does not allow: a defect of the engine."""


class TurnOrder:
    """Tracks the turn state of one connection."""

    def __init__(self) -> None:
        self.state: State = "idle"
        self.transcript = ""
        """Latest transcript of the open turn; empty while idle."""
        self.turns = 0
        """Number of turns started."""

    def admit(self, event: EngineEvent) -> None:
        """Process the next event. Raises EngineFault, without a change, if it is not allowed."""
        after = TRANSITIONS.get((self.state, event.kind))
        if after is None:
            raise EngineFault(f"{event.kind} while {self.state}")
        if (event.transcript is None) != (event.kind in _BARE):
            raise EngineFault(f"{event.kind} with transcript {event.transcript!r}")
        if event.transcript is not None and not event.transcript.startswith(self.transcript):
            raise EngineFault(f"{event.kind} takes back text already sent")
        self.state = after
        self.turns += event.kind == "turn.start"
        self.transcript = "" if after == "idle" else event.transcript or self.transcript
