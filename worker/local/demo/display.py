"""Displays of the demo, and those without a terminal: a line for each event, as text or JSON."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import msgspec
from rich.console import Console

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
    event_type,
)
from worker.local.demo.state import DemoState
from worker.local.demo.summary import Summary, closing
from worker.local.demo.traces import Span, waterfall
from worker.text import pluralize

_WIDTH: Final = 100


class ReceivedEvent(NamedTuple):
    """An event read from Redis: time of reading (Unix seconds), JSON, and decoded."""

    at: float
    json: bytes
    event: Event


class Display(ABC):
    """Shows the demo. Entered before the first process starts, and always exited."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return

    @abstractmethod
    def status(self, text: str) -> None:
        """Show progress of the startup."""

    @abstractmethod
    def update(self, state: DemoState, received: Sequence[ReceivedEvent]) -> None:
        """Show the state after these events; called many times a second."""

    @abstractmethod
    def finish(self, state: DemoState, summary: Summary, spans: Sequence[Span]) -> None:
        """Show the spans, if there are any, and the summary."""


class PlainLines(Display):
    """Prints plain text: a line for each turn, not for each word."""

    def __init__(self) -> None:
        self._noticed = 0

    def status(self, text: str) -> None:
        """Print a progress message."""
        print(text, flush=True)

    def update(self, state: DemoState, received: Sequence[ReceivedEvent]) -> None:
        """Print the events and notices that are new."""
        lines = [(at, "*", text) for at, text in state.notices[self._noticed :]]
        self._noticed = len(state.notices)
        lines += [
            (at, event.session, f"{event_type(event):15} {text}".rstrip())
            for at, _, event in received
            if (text := _sentence(event, state)) is not None
        ]
        width = max(map(len, state.rows))
        for at, who, text in sorted(lines, key=lambda new: new[0]):
            print(f"{at - state.began_at:5.1f} s  {who:{width}}  {text}", flush=True)

    def finish(self, state: DemoState, summary: Summary, spans: Sequence[Span]) -> None:
        """Print the spans, then the summary."""
        console = Console(width=_WIDTH, force_terminal=False, no_color=True)
        if spans:
            console.print(waterfall(spans, state.began_at, state.killed), "", sep="\n")
        console.print(closing(summary))


class JsonLines(Display):
    """Prints the events as published in Redis, then the spans and the summary."""

    def status(self, text: str) -> None:
        """Print a progress message to standard error."""
        print(text, file=sys.stderr, flush=True)

    def update(self, state: DemoState, received: Sequence[ReceivedEvent]) -> None:
        """Print the events."""
        del state
        for one in received:
            print(one.json.decode(), flush=True)

    def finish(self, state: DemoState, summary: Summary, spans: Sequence[Span]) -> None:
        """Print the spans, then the summary."""
        del state
        for result in (*spans, summary):
            print(msgspec.json.encode(result).decode(), flush=True)


def _sentence(event: Event, state: DemoState) -> str | None:
    """Return the text of an event; None if the event is not printed."""
    match event:
        case SessionStarted(encoding=encoding, sample_rate=rate, worker=worker):
            speaker = state.rows[event.session].role.speaker
            return f"{speaker}, {encoding} at {rate} Hz, on {worker}"
        case TurnStart() | TurnUpdate():
            return None
        case TurnResume(turn=turn):
            return str(turn)
        case TurnEagerEnd(turn=turn, transcript=text) | TurnEnd(turn=turn, transcript=text):
            socket = f"  ({event.provider}, socket {event.connection})"
            return f"{turn} {text.strip()}{socket if len(state.providers) > 1 else ''}"
        case AudioGap(missing_ms=missing, reason=reason):
            return f"{missing} ms, {reason}"
        case SessionMark(mark=mark):
            return msgspec.json.encode(mark).decode()
        case SessionError(code=code, message=message):
            return f"{code}: {message}"
        case SessionEnded(reason=reason, turns=turns):
            return f"{reason}, {pluralize(turns, 'turn')}"
