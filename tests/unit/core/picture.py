"""Draws the state diagrams in the docs: `python -m tests.unit.core.picture` writes them.

The session's phases are drawn from their table. The turn tracker's table gives only its actions.
The tracker itself gives the transitions: this module visits every state that a few steps reach, and
tries every input there.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import product
from typing import Final, NamedTuple

from tests.docs.pages import write_block
from worker.core import phases
from worker.core.phases import Input, Phase
from worker.core.turn_tracker import (
    TABLE,
    Action,
    ProviderInput,
    ProviderState,
    PublishedState,
    TurnTracker,
)

PAGE: Final = "architecture.md"
BLOCK: Final = "turn tracker"
PHASES_BLOCK: Final = "session phases"

_NEW_SOCKET: Final = "new socket"
_STEPS: Final = 6
"""Maximum steps: enough for a turn that is proposed, resumes, and is replayed on another socket."""

_WORDED: Final = (ProviderInput.UPDATE, ProviderInput.EAGER_END, ProviderInput.END)
_TEXTS: Final = ("one", "one two")
_POSITIONS: Final = (10, 20)

_LEGEND: Final = """\
An arrow has the provider's message and, after the slash, what is published then. Without a slash it
is nothing, or depends on the text. A message that changes neither view has no arrow. If one message
has several arrows, its text and position decide.
"""


class Place(NamedTuple):
    """State of a tracker."""

    shown: PublishedState
    provider: ProviderState

    @classmethod
    def of(cls, tracker: TurnTracker) -> "Place":
        """Return the state of a tracker."""
        return cls(tracker.published, tracker._provider)

    @property
    def name(self) -> str:
        """Return the state's name in the diagram."""
        return f"{self.shown.value}_{self.provider.value}"


class Arrow(NamedTuple):
    """A transition from one state to another."""

    start: Place
    message: str
    end: Place


def arrows() -> dict[Arrow, set[tuple[str, ...]]]:
    """Return every transition, with everything that was published on it."""
    found: dict[Arrow, set[tuple[str, ...]]] = {}
    known: set[str] = set()
    trackers = [TurnTracker()]
    for _ in range(_STEPS):
        reached = []
        for before in trackers:
            for message, after, published in _steps(before):
                arrow = Arrow(Place.of(before), message, Place.of(after))
                found.setdefault(arrow, set()).add(published)
                if (state := _state(after)) not in known:
                    known.add(state)
                    reached.append(after)
        trackers = reached
    return found


def _steps(tracker: TurnTracker) -> Iterator[tuple[str, TurnTracker, tuple[str, ...]]]:
    opened = deepcopy(tracker)
    opened.socket_opened()
    yield _NEW_SOCKET, opened, ()
    for message, position in product(ProviderInput, _POSITIONS):
        for text in _TEXTS if message in _WORDED else (None,):
            after = deepcopy(tracker)
            drafts = after.on_input(message, text, position)
            if not after.violations:
                yield message.value, after, tuple(draft.kind for draft in drafts)


def _state(tracker: TurnTracker) -> str:
    """Return a key that distinguishes trackers except by turn number."""
    names = getattr(TurnTracker, "__mypyc_attrs__", None) or TurnTracker.__slots__
    others = [name for name in names if name != "state"]
    return repr([tracker.state.open, *(getattr(tracker, name) for name in others)])


def markdown() -> str:
    """Return the diagram and its tables."""
    found = arrows()
    places = sorted({arrow.start for arrow in found}, key=_order)
    parts = ["", _diagram(found, places), _LEGEND, _table(places), _actions(), ""]
    return "\n".join(parts)


def _order(place: Place) -> tuple[int, int]:
    return list(PublishedState).index(place.shown), list(ProviderState).index(place.provider)


def _diagram(found: dict[Arrow, set[tuple[str, ...]]], places: Sequence[Place]) -> str:
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [
        f'    state "published {at.shown.value}, provider {at.provider.value}" as {at.name}'
        for at in places
    ]
    lines.append(f"    [*] --> {Place(PublishedState.NONE, ProviderState.NONE).name}")
    message = [*(each.value for each in ProviderInput), _NEW_SOCKET]
    for start, end in product(places, places):
        ways = [way for name in message if (way := Arrow(start, name, end)) in found]
        if start != end:
            lines += [f"    {start.name} --> {end.name}: {_label(way, found[way])}" for way in ways]
    return "\n".join([*lines, "```", ""])


def _label(way: Arrow, published: set[tuple[str, ...]]) -> str:
    certain = next(iter(published)) if len(published) == 1 else ()
    return f"{way.message} / {', '.join(certain)}" if certain else way.message


def _table(places: Sequence[Place]) -> str:
    lines = [
        "| published | provider | "
        + " | ".join(f"`{message.value}`" for message in ProviderInput)
        + " |",
        "|---|---|" + "---|" * len(ProviderInput),
    ]
    for place in places:
        actions = [
            TABLE.get((*place, message), Action.VIOLATION).name.lower() for message in ProviderInput
        ]
        lines.append(f"| {place.shown.value} | {place.provider.value} | {' | '.join(actions)} |")
    return "\n".join([*lines, ""])


def _actions() -> str:
    lines = ["| action | |", "|---|---|"]
    lines += [f"| {action.name.lower()} | {action.value} |" for action in Action]
    return "\n".join([*lines, ""])


def phases_markdown() -> str:
    """Return the diagram and the table of a session's phases."""
    lines = ["", "```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.PARKED}"]
    lines += [
        f"    {before} --> {after}: {event.name} / {action.name.lower()}"
        for (before, event), (action, after) in phases.TABLE.items()
        if before is not after and event is not Input.STOP
    ]
    lines += ["```", "", "| input | " + " | ".join(Phase) + " |", "|---|" + "---|" * len(Phase)]
    for event in Input:
        cells = [phases.TABLE.get((phase, event)) for phase in Phase]
        names = [cell[0].name.lower() if cell else "" for cell in cells]
        lines.append(f"| {event.name}: {event} | {' | '.join(names)} |")
    lines += ["", "| action | |", "|---|---|"]
    lines += [f"| {action.name.lower()} | {action} |" for action in phases.Action]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    write_block(PAGE, PHASES_BLOCK, phases_markdown())
    write_block(PAGE, BLOCK, markdown())
