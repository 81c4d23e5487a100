"""Moves of the sessions of a chaos run between providers, from their events. No I/O."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from schemas.turns import Event, SessionStarted, TurnEnd, TurnStart
from tests.chaos.script import ScriptedSession
from worker.bench.checker import Violation


class ProviderMove(NamedTuple):
    """A session's move from one provider to another."""

    source: str
    target: str
    inside_turn: bool

    @property
    def label(self) -> str:
        """The move in words."""
        place = "inside a turn" if self.inside_turn else "between turns"
        return f"{self.source} to {self.target} {place}"


def provider_moves(events: Sequence[Event]) -> Iterator[ProviderMove]:
    """Yield the moves of one session. A provider that sent nothing does not appear in them."""
    current, inside_turn = "", False
    for event in events:
        if isinstance(event, SessionStarted):
            continue  # published before a socket
        if current not in ("", event.provider):
            yield ProviderMove(current, event.provider, inside_turn)
        current = event.provider
        if isinstance(event, TurnStart | TurnEnd):
            inside_turn = isinstance(event, TurnStart)


def wrong_providers(script: ScriptedSession, events: Sequence[Event]) -> Iterator[Violation]:
    """Yield the providers that served a session although it did not ask for them."""
    served = {event.provider for event in events}
    for provider in sorted(served):
        if not script.wishes.allows(provider):
            detail = f"provider {provider} serves a session that asks for {script.wishes}"
            yield Violation(script.name, "bus", detail)
