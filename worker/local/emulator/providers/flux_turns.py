"""Turns as Flux reports them, from the events of any engine. No I/O.

    Initial --StartOfTurn--> TurnOngoing
    TurnOngoing --EagerEndOfTurn--> AwaitingEnd --TurnResumed--> TurnOngoing
    TurnOngoing or AwaitingEnd --EndOfTurn--> Initial

The order holds for any events of the engine. A turn starts with its first word, so that no
`StartOfTurn` and no `EagerEndOfTurn` has an empty transcript. The text of an `EndOfTurn` equals
that of the eager end before it, or `TurnResumed` comes between. A `progress` event becomes an
`Update`, unless another message was sent since the last one.
"""

from typing import Literal

from worker.local.emulator.engines.base import EngineEvent, EventKind, Word
from worker.local.emulator.turn_info import TurnInfo

State = Literal["Initial", "TurnOngoing", "AwaitingEnd"]


class FluxTurns:
    """Tracks the turns of one connection."""

    def __init__(self, *, eager: bool) -> None:
        self.state: State = "Initial"
        self.eager = eager
        """Whether eager ends are sent."""
        self.text = ""
        """Latest transcript of the open turn."""
        self._words: tuple[Word, ...] = ()
        self._sent_text = ""  # of the last message of the open turn
        self._eager_text = ""  # of its last eager end
        self._turn_index = 0
        self._window_start_s = 0.0
        self._decoded_s = 0.0
        self._due = True  # whether no message was sent since the last progress

    def admit(self, event: EngineEvent) -> list[EngineEvent]:
        """Return the messages that an event of the engine causes.

        They are `TurnInfo`, except for the reply to an `end_turn` without a turn: a `progress`
        event whose trigger is `manual`.
        """
        self._decoded_s = max(self._decoded_s, event.decoded_s)
        if event.kind == "progress":
            return [event] if event.trigger == "manual" else self._progress(event)
        if event.transcript is not None:
            self.text = event.transcript.strip()
            self._words = event.words
        sent: list[EngineEvent] = []
        if self.state == "Initial" and self.text:
            self.state = "TurnOngoing"
            sent.append(self._message("turn.start", event))
        match event.kind:
            case "turn.update" | "turn.resume":
                sent += self._resume(event, even_if_equal=event.kind == "turn.resume")
            case "turn.eager_end":
                if self.eager and self.text and self.state == "TurnOngoing":
                    self.state = "AwaitingEnd"
                    self._eager_text = self.text
                    sent.append(self._message("turn.eager_end", event))
            case "turn.end" if event.trigger == "flush":
                sent += self._resume(event)
                if self.text != self._sent_text:
                    sent.append(self._message("turn.update", event))
            case "turn.end":
                sent += self._resume(event)
                sent += self._end(event)
        self._due = self._due and not sent
        return sent

    def _progress(self, event: EngineEvent) -> list[EngineEvent]:
        due, self._due = self._due, True
        return [self._message("turn.update", event)] if due else []

    def _resume(self, event: EngineEvent, *, even_if_equal: bool = False) -> list[EngineEvent]:
        """Return `TurnResumed` if an eager end is taken back."""
        if self.state != "AwaitingEnd" or not (even_if_equal or self.text != self._eager_text):
            return []
        self.state = "TurnOngoing"
        return [self._message("turn.resume", event)]

    def _end(self, event: EngineEvent) -> list[EngineEvent]:
        """Return `EndOfTurn`; a turn without a word did not exist for the client."""
        if self.state == "Initial":
            manual = event.trigger == "manual"
            return [EngineEvent("progress", trigger="manual")] if manual else []
        end = self._message("turn.end", event)
        self.state = "Initial"
        self.text = self._sent_text = ""
        self._words = ()
        self._turn_index += 1
        self._window_start_s = self._decoded_s
        return [end]

    def _message(self, kind: EventKind, event: EngineEvent) -> TurnInfo:
        self._sent_text = self.text
        return TurnInfo(
            kind,
            self.text,
            self._words,
            self._decoded_s,
            event.end_likelihood,
            event.trigger,
            self._turn_index,
            self._window_start_s,
        )
