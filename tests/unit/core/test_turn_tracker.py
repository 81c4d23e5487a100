"""The turn tracker: its table cell by cell, scenarios, and guarantees by property."""

from collections.abc import Callable
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from schemas.turns import TurnEndReason
from worker.core.records import EventDraft, OpenTurn, TurnState
from worker.core.turn_tracker import (
    TABLE,
    Action,
    ProviderInput,
    ProviderState,
    PublishedState,
    TurnTracker,
)

GRID = """
    published provider  turn.start    turn.update  turn.eager_end  turn.resume  turn.end
    none      none      START         -            -               -            -
    none      speaking  -             -            -               -            -
    none      eager     -             -            -               -            -
    speaking  none      REPLAY_START  -            -               -            -
    speaking  speaking  -             UPDATE       EAGER_END       -            END
    speaking  eager     -             UPDATE       EAGER_END       RESUME       END
    eager     none      REPLAY_START  -            -               -            -
    eager     speaking  -             UPDATE       EAGER_END       -            END
    eager     eager     -             UPDATE       EAGER_END       RESUME       END
"""


def _cells() -> dict[tuple[PublishedState, ProviderState, ProviderInput], Action | None]:
    head, *rows = [line.split() for line in GRID.strip().splitlines()]
    return {
        (PublishedState(row[0]), ProviderState(row[1]), ProviderInput(message)): None
        if cell == "-"
        else Action[cell]
        for row in rows
        for message, cell in zip(head[2:], row[2:], strict=True)
    }


def _tracker(shown: PublishedState, received: ProviderState) -> TurnTracker:
    """Return a tracker in that state: an earlier owner published, then this socket received."""
    known = {
        PublishedState.NONE: None,
        PublishedState.SPEAKING: OpenTurn(transcript="one", transcript_position=10),
        PublishedState.EAGER: OpenTurn(
            transcript="one", transcript_position=10, eager=True, eager_transcript="one"
        ),
    }
    tracker = TurnTracker(TurnState(turn=3, open=known[shown]), jitter=10)
    if received is not ProviderState.NONE:
        tracker.on_input(ProviderInput.START, None, 11)
    if received is ProviderState.EAGER:
        # Too early to be news, so the published state stays as it is.
        tracker.on_input(ProviderInput.EAGER_END, "1", 5)
    assert tracker.published is shown
    return tracker


def test_table_has_every_possible_cell() -> None:
    cells = _cells()
    assert set(cells) == set(product(PublishedState, ProviderState, ProviderInput))
    assert {cell: action for cell, action in cells.items() if action is not None} == dict(TABLE)


@pytest.mark.parametrize(
    ("shown", "received", "message"),
    [
        pytest.param(*cell, id="-".join(part.value for part in cell))
        for cell, action in _cells().items()
        if action is None
        and not (cell[0] is PublishedState.NONE and cell[1] is not ProviderState.NONE)
    ],
)
def test_input_outside_table_is_ignored_and_counted(
    shown: PublishedState, received: ProviderState, message: ProviderInput
) -> None:
    tracker = _tracker(shown, received)
    before = tracker.state
    assert tracker.on_input(message, "one two three", 99) == []
    assert tracker.violations == 1
    assert tracker.state == before
    assert tracker.provider_in_turn == (received is not ProviderState.NONE)


# What each cell of the table does, with new text and without: the text and position received,
# the kinds published, and the states of consumers and provider afterwards.
DONE: list[
    tuple[PublishedState, ProviderState, ProviderInput, str | None, int, str, PublishedState, bool]
] = [
    (
        PublishedState.NONE,
        ProviderState.NONE,
        ProviderInput.START,
        None,
        20,
        "start",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.NONE,
        ProviderInput.START,
        None,
        20,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.NONE,
        ProviderInput.START,
        None,
        20,
        "",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "one two",
        20,
        "update",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "one",
        20,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "two",
        20,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "",
        20,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.EAGER,
        ProviderInput.UPDATE,
        "one two",
        20,
        "update",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "1 2 3",
        20,
        "resume update",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.UPDATE,
        "one",
        20,
        "",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.EAGER,
        ProviderInput.UPDATE,
        "1 2 3",
        20,
        "resume update",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.EAGER_END,
        "one",
        20,
        "eager_end",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.EAGER_END,
        "1",
        5,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.EAGER,
        ProviderInput.EAGER_END,
        "one 2",
        20,
        "eager_end",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.EAGER_END,
        "one",
        20,
        "",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.EAGER_END,
        "1 2 3",
        9,
        "",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.EAGER_END,
        "one 2",
        9,
        "resume eager_end",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.EAGER,
        ProviderInput.EAGER_END,
        "1 2 3",
        20,
        "resume eager_end",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.EAGER,
        ProviderInput.RESUME,
        None,
        20,
        "",
        PublishedState.SPEAKING,
        True,
    ),
    (
        PublishedState.EAGER,
        ProviderState.EAGER,
        ProviderInput.RESUME,
        None,
        20,
        "",
        PublishedState.EAGER,
        True,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "one two",
        20,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "1",
        20,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "one two",
        5,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "two",
        9,
        "",
        PublishedState.SPEAKING,
        False,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "two",
        10,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.SPEAKING,
        ProviderState.EAGER,
        ProviderInput.END,
        "one",
        20,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "one",
        20,
        "end",
        PublishedState.NONE,
        False,
    ),
    (
        PublishedState.EAGER,
        ProviderState.SPEAKING,
        ProviderInput.END,
        "two",
        9,
        "",
        PublishedState.EAGER,
        False,
    ),
    (
        PublishedState.EAGER,
        ProviderState.EAGER,
        ProviderInput.END,
        None,
        20,
        "end",
        PublishedState.NONE,
        False,
    ),
]


@pytest.mark.parametrize(
    ("shown", "received", "message", "text", "position", "published", "shown_then", "in_turn"), DONE
)
def test_cell_performs_its_action(
    shown: PublishedState,
    received: ProviderState,
    message: ProviderInput,
    text: str | None,
    position: int,
    published: str,
    shown_then: PublishedState,
    in_turn: bool,
) -> None:
    tracker = _tracker(shown, received)
    drafts = tracker.on_input(message, text, position)
    assert " ".join(draft.kind.removeprefix("turn.") for draft in drafts) == published
    assert {draft.turn for draft in drafts} <= {3}
    assert (tracker.published, tracker.provider_in_turn) == (shown_then, in_turn)
    assert tracker.violations == 0


def test_every_cell_of_table_has_an_example() -> None:
    assert {row[:3] for row in DONE} == set(TABLE)


# -- scenarios


def _round_trip(state: TurnState) -> TurnState:
    return msgspec.json.decode(msgspec.json.encode(state), type=TurnState)


class Story:
    """Sends inputs to a tracker and records what consumers read, one line each.

    An input is its kind, `@` with the position of the sent audio, and its text after a colon. Other
    steps are `new socket`, `new owner` (with a new socket), `close`, `watchdog`, or `settle:` with
    the transcript of the committed audio.
    """

    def __init__(self) -> None:
        self.tracker = TurnTracker()

    def step(self, what: str) -> list[str]:
        drafts: list[EventDraft] = []
        match what:
            case "new socket":
                self.tracker.socket_opened()
            case "new owner":
                self.tracker = TurnTracker(_round_trip(self.tracker.state))
                self.tracker.socket_opened()
            case "close" | "watchdog":
                drafts = self.tracker.force_end(what)
            case _ if what.startswith("settle:"):
                self.tracker.commit_prefix(what.removeprefix("settle:"))
            case _:
                message, _, rest = what.partition("@")
                position, _, text = rest.partition(":")
                drafts = self.tracker.on_input(
                    ProviderInput(f"turn.{message}"), text or None, int(position)
                )
        return [_line(draft) for draft in drafts]


def _line(draft: EventDraft) -> str:
    text = "" if draft.transcript is None else f":{draft.transcript}"
    reason = f" ({draft.reason})" if draft.reason else ""
    return f"{draft.turn} {draft.kind.removeprefix('turn.')}{text}{reason}"


HEARD_HELLO = [
    ("start@10", ["0 start"]),
    ("update@20:hello", ["0 update:hello"]),
    ("update@30:hello you", ["0 update:hello you"]),
]

SCENARIOS: dict[str, list[tuple[str, list[str]]]] = {
    "two turns without faults": [
        *HEARD_HELLO,
        ("update@30:hello you", []),
        ("end@40:hello you", ["0 end:hello you (model)"]),
        ("start@50", ["1 start"]),
        ("update@60: there", ["1 update: there"]),
        ("end@70: there.", ["1 end: there. (model)"]),
    ],
    "a turn without a word": [
        ("start@10", ["0 start"]),
        ("end@20", ["0 end: (model)"]),
    ],
    "an eager end that is confirmed": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("end@50:hello you.", ["0 end:hello you. (model)"]),
    ],
    "eager ends that are resumed, even with the same text": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("resume@50", ["0 resume"]),
        ("eager_end@60:hello you", ["0 eager_end:hello you"]),
        ("resume@70", ["0 resume"]),
        ("update@80:hello you there", ["0 update:hello you there"]),
        ("end@90:hello you there", ["0 end:hello you there (model)"]),
    ],
    "text that grows past an eager end publishes one resume before it": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("update@50:hello you there", ["0 resume", "0 update:hello you there"]),
        ("resume@51", []),
        ("update@60:hello you there now", ["0 update:hello you there now"]),
    ],
    "an eager end that grows without a resume": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("eager_end@40:hello you", []),
        ("eager_end@45:hello you.", ["0 resume", "0 eager_end:hello you."]),
        ("end@50:hello you.", ["0 end:hello you. (model)"]),
    ],
    "an end and an eager end never shrink the published text": [
        *HEARD_HELLO,
        ("eager_end@40:hello", ["0 eager_end:hello you"]),
        ("end@50:hell", ["0 end:hello you (model)"]),
    ],
    "replay with the same wording": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("update@20:hello", []),
        ("update@30:hello you", []),
        ("update@40:hello you there", ["0 update:hello you there"]),
        ("end@50:hello you there", ["0 end:hello you there (model)"]),
        ("start@60", ["1 start"]),
    ],
    "replay with a shorter wording": [
        *HEARD_HELLO,
        ("new owner", []),
        ("start@10", []),
        ("update@20:hallo", []),
        ("update@30:hallo u", []),
        ("end@50:hallo u", ["0 end:hello you (model)"]),
    ],
    "replay with a longer wording": [
        *HEARD_HELLO,
        ("new owner", []),
        ("start@10", []),
        ("update@20:hullo", []),
        ("update@30:hullo, you", ["0 update:hullo, you"]),
        ("end@50:hullo, you!", ["0 end:hullo, you! (model)"]),
    ],
    "an early replayed end is ignored, and the next turn continues the text": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@25:Hi.", []),
        ("start@26", []),
        ("update@30: You", []),
        ("update@40: You there", ["0 update:Hi. You there"]),
        ("eager_end@45: You there", ["0 eager_end:Hi. You there"]),
        ("end@50: You there?", ["0 end:Hi. You there? (model)"]),
        ("start@60", ["1 start"]),
        ("end@70: Yes", ["1 end: Yes (model)"]),
    ],
    "a replay with two early ends": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@15:Hu", []),
        ("start@16", []),
        ("end@25:llo.", []),
        ("start@26", []),
        ("end@30: You.", ["0 end:Hullo. You. (model)"]),
    ],
    "a socket lost after an early end restarts the replay": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@25:Hullo.", []),
        ("new socket", []),
        ("start@10", []),
        ("end@40:Hullo. You.", ["0 end:Hullo. You. (model)"]),
    ],
    "an early end with all published text ends the turn": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@29:hello you", ["0 end:hello you (model)"]),
    ],
    "a replayed eager end is not published, the resume after it is": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("new owner", []),
        ("start@10", []),
        ("update@20:hello", []),
        ("eager_end@40:hello you", []),
        ("resume@50", ["0 resume"]),
        ("update@60:hello you there", ["0 update:hello you there"]),
    ],
    "a replayed eager end and resume are not published": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("resume@50", ["0 resume"]),
        ("new socket", []),
        ("start@10", []),
        ("eager_end@40:hello you", []),
        ("resume@50", []),
        ("end@60:hello you", ["0 end:hello you (model)"]),
    ],
    "an eager end within the replay is not published, nor its resume": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("new socket", []),
        ("start@10", []),
        ("eager_end@20:hallo", []),
        ("resume@25", []),
        ("update@35:hallo you two", ["0 resume", "0 update:hallo you two"]),
    ],
    "an older eager end that is late in a replay is recognised by its text": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("new socket", []),
        ("start@20", []),
        ("eager_end@35:hello", []),
        ("resume@36", []),
        ("eager_end@50:hello you", []),
        ("end@60:hello you", ["0 end:hello you (model)"]),
    ],
    "a replay without the eager end grows past it": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("new owner", []),
        ("start@10", []),
        ("update@50:hello you there", ["0 resume", "0 update:hello you there"]),
    ],
    "a replay that ends a turn with only a published start": [
        ("start@10", ["0 start"]),
        ("new owner", []),
        ("start@9", []),
        ("end@9:hi", ["0 end:hi (model)"]),
    ],
    "the provider closes inside a turn": [
        *HEARD_HELLO,
        ("close", ["0 end:hello you (close)"]),
        ("close", []),
        ("start@60", ["1 start"]),
    ],
    "the watchdog ends a turn after its eager end": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("watchdog", ["0 end:hello you (watchdog)"]),
        ("end@50:hello you", []),
    ],
    "a turn that ends on an early replayed end keeps the longer text": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@25:hullo, you two", []),
        ("close", ["0 end:hullo, you two (close)"]),
    ],
    "a turn that ends on an early replayed end without new words keeps its text": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@10", []),
        ("end@25:'lo", []),
        ("watchdog", ["0 end:hello you (watchdog)"]),
    ],
    "a turn that ends after committed words in a longer wording keeps the others": [
        *HEARD_HELLO,
        ("settle:Helloooooo.", []),
        ("new socket", []),
        ("close", ["0 end:hello you (close)"]),
    ],
    "a replay with a shorter wording and more words": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@11", []),
        ("update@21:'lo", []),
        ("update@31:'lo u", []),
        ("update@41:'lo u 2", ["0 update:hello you 2"]),
        ("eager_end@51:'lo u 2 x", ["0 eager_end:hello you 2 x"]),
        ("end@61:'lo u 2 x y", ["0 end:hello you 2 x y (model)"]),
    ],
    "a replay without the published text continues after it": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@11", []),
        ("update@31:there", ["0 update:hello you there"]),
        ("end@61:there now", ["0 end:hello you there now (model)"]),
    ],
    "late messages of a replay do not repeat the beginning of a long word": [
        ("start@10", ["0 start"]),
        ("update@30:Donaudampfschiff", ["0 update:Donaudampfschiff"]),
        ("new socket", []),
        ("start@31", []),
        ("update@32:Don", []),
        ("update@33:Donaudampfschiffe", ["0 update:Donaudampfschiffe"]),
        ("end@50:Donaudampfschiffe da", ["0 end:Donaudampfschiffe da (model)"]),
    ],
    "a replay with a longer wording is published once it has caught up": [
        *HEARD_HELLO,
        ("new socket", []),
        ("start@11", []),
        ("update@21:well, hello", []),
        ("update@31:well, hello you", ["0 update:well, hello you"]),
        ("end@61:well, hello you", ["0 end:well, hello you (model)"]),
    ],
    "a new socket continues after the committed text": [
        *HEARD_HELLO,
        ("eager_end@40:hello you", ["0 eager_end:hello you"]),
        ("update@50:hello you there", ["0 resume", "0 update:hello you there"]),
        ("settle:hello you", []),
        ("new socket", []),
        ("start@45", []),
        ("update@52:there", []),
        ("new owner", []),
        ("start@45", []),
        ("update@60:there now", ["0 update:hello you there now"]),
        ("end@70:there now.", ["0 end:hello you there now. (model)"]),
        ("start@80", ["1 start"]),
        ("end@90:bye", ["1 end:bye (model)"]),
    ],
    "a new socket continues after any committed text if the provider lags": [
        ("start@10", ["0 start"]),
        ("update@20:a b c d e f g h i j", ["0 update:a b c d e f g h i j"]),
        ("update@30:a b c d e f g h i j k", ["0 update:a b c d e f g h i j k"]),
        ("settle:a b c d e f g h i j", []),
        ("new owner", []),
        ("start@35", []),
        ("update@40:k", []),
        ("update@45:k l", ["0 update:a b c d e f g h i j k l"]),
    ],
    "committed text is not repeated in the next turn": [
        *HEARD_HELLO,
        ("settle:hello", []),
        ("end@40:hello you", ["0 end:hello you (model)"]),
        ("new socket", []),
        ("start@50", ["1 start"]),
        ("update@60:bye", ["1 update:bye"]),
    ],
    "duplicates and orphans": [
        ("end@5:what", []),
        ("update@5:what", []),
        ("resume@5", []),
        ("start@10", ["0 start"]),
        ("start@11", []),
        ("resume@12", []),
        ("end@20:a", ["0 end:a (model)"]),
        ("end@20:a", []),
        ("eager_end@21:a", []),
    ],
}


@pytest.mark.parametrize("steps", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_scenario(steps: list[tuple[str, list[str]]]) -> None:
    story = Story()
    assert [(what, story.step(what)) for what, _ in steps] == steps


def test_positions_start_with_turn() -> None:
    story = Story()
    story.step("start@10")
    assert story.tracker.state.open == OpenTurn(transcript_position=10)
    story.step("update@30:hello")
    story.step("update@50:hullo")
    story.step("eager_end@60:hello")
    assert story.tracker.state.open is not None
    assert story.tracker.state.open.transcript_position == 30  # the position of the longest text


# -- properties


class Consumer:
    """Accepts events as a consumer does, and fails on a contradiction."""

    def __init__(self) -> None:
        self.turn = 0
        self.text: str | None = None  # of the open turn
        self.eager = False
        self.ends: list[str] = []

    def read(self, drafts: list[EventDraft]) -> None:
        for draft in drafts:
            assert draft.turn == self.turn, "turns count 0, 1, ... and an ended turn is over"
            text = draft.transcript
            if draft.kind == "turn.start":
                assert self.text is None, "one start"
                assert text is None
                self.text = ""
                continue
            assert self.text is not None, "nothing before the start or after the end"
            if draft.kind == "turn.update":
                assert not self.eager, "an eager end is followed by a resume or the end"
                assert text is not None
                assert text != self.text, "no repeats"
                assert len(text) >= len(self.text), "no shrinking"
            elif draft.kind == "turn.resume":
                assert self.eager, "a resume is of an eager end"
                assert text is None
                self.eager = False
            else:
                assert text is not None
                assert len(text) >= len(self.text), "no shrinking"
                if draft.kind == "turn.eager_end":
                    assert not self.eager, "no second eager end without a resume"
                    self.eager = True
            self.text = text if text is not None else self.text
            if draft.kind == "turn.end":
                assert draft.reason in {"model", "close", "watchdog"}
                assert text is not None
                self.ends.append(text)
                self.turn, self.text, self.eager = self.turn + 1, None, False

    def agrees_with(self, tracker: TurnTracker) -> None:
        assert tracker.open == (self.text is not None)
        assert (tracker.published is PublishedState.EAGER) == self.eager
        assert tracker.state.turn == self.turn
        if tracker.provider_in_turn:
            assert tracker.open, "consumers know every turn that the provider has open"


WORDS = st.text(alphabet="ab ", max_size=6)
SAID = st.tuples(st.sampled_from(ProviderInput), st.none() | WORDS, st.integers(0, 20))
STEPS = st.lists(
    SAID | st.sampled_from(["new socket", "new owner", "close", "watchdog"]), max_size=60
)
REASONS: dict[str, TurnEndReason] = {"close": "close", "watchdog": "watchdog"}


@given(STEPS)
def test_consumers_can_follow_any_provider(steps: list[Any]) -> None:
    tracker, consumer = TurnTracker(), Consumer()
    for step in steps:
        drafts: list[EventDraft] = []
        if step == "new socket":
            tracker.socket_opened()
        elif step == "new owner":
            tracker = TurnTracker(_round_trip(tracker.state))
            tracker.socket_opened()
        elif step in REASONS:
            drafts = tracker.force_end(REASONS[step])
            assert not tracker.open
        else:
            message, text, position = step
            foretold = tracker.will_end(text or "", position)
            drafts = tracker.on_input(message, text, position)
            if message is ProviderInput.END:
                assert foretold == any(draft.kind == "turn.end" for draft in drafts)
        consumer.read(drafts)
        consumer.agrees_with(tracker)


class Observation(msgspec.Struct, frozen=True):
    """What a deterministic provider sends at a position of the audio."""

    message: ProviderInput
    text: str | None
    position: int


@st.composite
def lawful_speech(draw: st.DrawFn) -> list[Observation]:
    """Turns as the protocol allows them; every eager end of a turn has another text."""
    speech: list[Observation] = []
    position = 0

    def add(message: ProviderInput, text: str | None = None) -> None:
        nonlocal position
        position += draw(st.integers(1, 5))
        speech.append(Observation(message, text, position))

    for _ in range(draw(st.integers(1, 4))):
        text = ""
        add(ProviderInput.START)
        for grows in draw(st.lists(st.booleans(), max_size=6)):
            if grows or speech[-1].message is ProviderInput.RESUME or not text:
                text += draw(st.sampled_from(["a", "b c", " d"]))
                add(ProviderInput.UPDATE, text)
            else:
                add(ProviderInput.EAGER_END, text)
                add(ProviderInput.RESUME)
        if draw(st.booleans()) and speech[-1].message is ProviderInput.UPDATE:
            add(ProviderInput.EAGER_END, text)
        add(ProviderInput.END, text + draw(st.sampled_from(["", "."])))
    return speech


@given(lawful_speech())
def test_events_without_faults_match_provider(speech: list[Observation]) -> None:
    tracker = TurnTracker()
    received = [
        draft for one in speech for draft in tracker.on_input(one.message, one.text, one.position)
    ]
    assert [(one.message.value, one.text) for one in speech] == [
        (draft.kind, draft.transcript) for draft in received
    ]
    assert tracker.violations == 0


@given(
    lawful_speech(),
    st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(-4, 4)), max_size=8),
)
def test_replay_with_same_wording_is_invisible(
    speech: list[Observation], losses: list[tuple[int, bool, int]]
) -> None:
    """Sockets and owners are lost at any time, and the lag differs from socket to socket."""
    tracker = TurnTracker()
    calm = [
        draft for one in speech for draft in tracker.on_input(one.message, one.text, one.position)
    ]

    tracker = TurnTracker()
    seen: list[EventDraft] = []
    at = resume_at = lag = 0
    pending = list(losses)
    until_loss = pending[0][0] if pending else None
    while at < len(speech):
        if until_loss == 0:
            _, new_owner, lag = pending.pop(0)
            until_loss = pending[0][0] if pending else None
            if new_owner:
                tracker = TurnTracker(_round_trip(tracker.state))
            tracker.socket_opened()
            at = resume_at
            continue
        one = speech[at]
        at += 1
        seen += tracker.on_input(one.message, one.text, max(0, one.position + lag))
        if not tracker.open:
            resume_at = at  # the end of a turn commits its audio
        until_loss = None if until_loss is None else until_loss - 1
    event(f"losses: {len(losses) - len(pending)}")
    assert seen == calm
    assert tracker.violations == 0


@given(
    published=st.integers(1, 60),
    settled=st.floats(0, 1),
    received=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 30)), max_size=12),
)
def test_replay_from_pause_is_invisible_at_any_step(
    published: int, settled: float, received: list[tuple[int, int]]
) -> None:
    words = [f"w{number}" for number in range(published + sum(more for more, _ in received))]
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 1)
    tracker.on_input(ProviderInput.UPDATE, " ".join(words[:published]), 50)
    again = round(settled * published)
    tracker.commit_prefix(" ".join(words[:again]))
    tracker.socket_opened()
    tracker.on_input(ProviderInput.START, None, 1)
    position = sent = 0
    for more, passed in received:
        sent += more
        position += passed
        text = " ".join(words[again : again + sent])
        tracker.on_input(ProviderInput.UPDATE, text, position)
        assert tracker.state.open is not None
        shown = tracker.state.open.transcript
        assert " ".join(words).startswith(shown), "nothing is repeated, nothing left out"
        if position >= 50:
            assert shown == " ".join(words[: max(published, again + sent)])


@given(st.lists(SAID, max_size=40), st.integers(0, 40))
def test_new_owner_acts_as_same_owner_with_new_socket(
    inputs: list[tuple[ProviderInput, str | None, int]], lost_at: int
) -> None:
    def run(replace: Callable[[TurnTracker], TurnTracker]) -> list[EventDraft]:
        tracker, drafts = TurnTracker(), []
        for at, one in enumerate(inputs):
            if at == lost_at:
                tracker = replace(tracker)
                tracker.socket_opened()
            drafts += tracker.on_input(*one)
        return drafts

    assert run(lambda tracker: tracker) == run(lambda tracker: TurnTracker(tracker.state))


# -- a provider that revises the text of a turn

REVISIONS: dict[str, tuple[list[str], str, list[str]]] = {
    "longer": (["to Bos", "to Boston"], "to Boston.", ["to Bos", "to Boston", "to Boston."]),
    "shorter": (["to Boston"], "to Austin", ["to Boston", "to Austin"]),
    "shorter in between": (
        ["to Boston now", "to Austin", "to Austin now please"],
        "to Austin now, please.",
        ["to Boston now", "to Austin now please", "to Austin now, please."],
    ),
    "blank": (["to Boston"], "", ["to Boston", "to Boston"]),
}


@pytest.mark.parametrize("case", REVISIONS)
def test_revised_text_never_shrinks_before_the_last_one(case: str) -> None:
    updates, final, published = REVISIONS[case]
    tracker = TurnTracker()
    tracker.socket_opened(may_shrink=True)
    drafts = tracker.on_input(ProviderInput.START, None, 1)
    for at, text in enumerate(updates, 2):
        drafts += tracker.on_input(ProviderInput.UPDATE, text, at)
    drafts += tracker.on_input(ProviderInput.END, final, 99)
    assert [draft.transcript for draft in drafts[1:]] == published
    assert drafts[-1].kind == "turn.end"


@pytest.mark.parametrize(
    ("known", "final", "ends_with"),
    [
        ("to\r\nBoston\r\n", "to Boston", "to\r\nBoston\r\n"),
        ("to Boston ", "to Boston", "to Boston "),
        ("toBoston", "to Boston", "to Boston"),
        ("to Boston now", "to Boston", "to Boston"),
    ],
)
def test_end_at_another_provider_keeps_white_space(known: str, final: str, ends_with: str) -> None:
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 1)
    tracker.on_input(ProviderInput.UPDATE, known, 2)
    tracker.socket_opened(may_shrink=True)
    tracker.on_input(ProviderInput.START, None, 1)
    (end,) = tracker.on_input(ProviderInput.END, final, 3)
    assert (end.kind, end.transcript) == ("turn.end", ends_with)


@pytest.mark.parametrize("first", ["twenty to Boston", "20. to Boston", "20.to"])
def test_turn_that_a_replay_splits_keeps_its_words_apart(first: str) -> None:
    """The other provider writes differently, ends turns earlier, and begins them without space."""
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, first, 50)
    tracker.socket_opened(may_shrink=True, bare_text=True)
    drafts = tracker.on_input(ProviderInput.START, None, 10)
    drafts += tracker.on_input(ProviderInput.END, "20.", 20)
    drafts += tracker.on_input(ProviderInput.START, None, 30)
    assert drafts == []
    (end,) = tracker.on_input(ProviderInput.END, "To Boston, please.", 60)
    assert (end.kind, end.transcript) == ("turn.end", "20. To Boston, please.")


def _at_another_kind(*, exact: bool, position: int) -> TurnTracker:
    """Return a tracker whose open turn began on a socket of the other kind, with a lag of 20."""
    tracker = TurnTracker()
    tracker.socket_opened(exact=not exact)
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, "one two", position)
    tracker.socket_opened(exact=exact, lag=20)
    tracker.on_input(ProviderInput.START, None, 10)
    return tracker


@pytest.mark.parametrize(
    ("exact", "known", "ended", "closes"),
    [
        # The text was exact; now messages come 20 later.
        (False, 50, 69, False),
        (False, 50, 70, True),
        # Messages came 20 later; now the text is exact.
        (True, 70, 49, False),
        (True, 70, 50, True),
    ],
)
def test_positions_are_compared_across_kinds_of_providers(
    exact: bool, known: int, ended: int, closes: bool
) -> None:
    tracker = _at_another_kind(exact=exact, position=known)
    assert tracker.will_end("ONE", ended) is closes
    drafts = tracker.on_input(ProviderInput.END, "ONE", ended)
    assert bool(drafts) is closes
    assert tracker.open is not closes


def _paused(*, exact: bool = False, idle_bytes: int = 15) -> TurnTracker:
    """Return a tracker that replays a turn whose producer paused before its text arrived."""
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, "one two three", 60, idle_bytes=idle_bytes)
    tracker.socket_opened(exact=exact, lag=20)
    tracker.on_input(ProviderInput.START, None, 50)
    return tracker


@pytest.mark.parametrize(
    ("text", "position", "idle_bytes", "closes"),
    [
        ("one two", 60, 0, False),
        ("one two", 60, 14, False),
        ("one two", 60, 15, True),
        ("one two", 70, 4, False),
        ("one two", 70, 5, True),
        ("one two", 59, 40, False),  # the replay paused, not the producer
        ("1 2", 60, 14, False),
        ("1 2", 60, 15, True),
        ("1 2 3", 60, 0, True),  # another wording of all of it
        ("one two three four", 59, 0, True),
    ],
)
def test_end_of_a_replay_in_a_pause(
    text: str, position: int, idle_bytes: int, *, closes: bool
) -> None:
    """All audio was sent before the published text arrived. The time since then decides."""
    tracker = _paused()
    assert tracker.will_end(text, position, idle_bytes) is closes
    drafts = tracker.on_input(ProviderInput.END, text, position, idle_bytes=idle_bytes)
    assert bool(drafts) is closes


def test_pause_does_not_count_for_a_provider_with_times() -> None:
    """Its position cannot pass the last audio, however late the published text arrived."""
    tracker = _paused(exact=True, idle_bytes=90)
    assert tracker.will_end("1 2 three.", 60)
    assert not tracker.will_end("1 2 three.", 39)


def test_pause_does_not_count_on_the_socket_of_the_text() -> None:
    """The text came in a pause. The end comes after more audio, in another wording."""
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, "twenty five", 60, idle_bytes=90)
    assert tracker.on_input(ProviderInput.EAGER_END, "25", 70)
    assert tracker.will_end("25.", 80)
    assert tracker.on_input(ProviderInput.END, "25.", 80)


def test_end_after_held_text_ends_the_turn() -> None:
    """A held update, published with the end, does not move the end before it."""
    tracker = _paused()
    assert tracker.will_end("one two", 75)
    tracker.on_input(ProviderInput.UPDATE, "one two three four", 60, idle_bytes=30)
    assert tracker.on_input(ProviderInput.END, "one two", 75)


def test_forced_end_adds_no_words_of_an_end_that_came_too_early() -> None:
    """It covers less audio: its last words are another wording of published ones."""
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, "um so I would really like 2,500", 60)
    tracker.socket_opened()
    tracker.on_input(ProviderInput.START, None, 20)
    assert not tracker.on_input(ProviderInput.END, "I'd like two thousand five", 50)
    (draft,) = tracker.force_end("close")
    assert draft.transcript == "um so I would really like 2,500"


def test_text_that_grows_has_the_position_of_its_socket() -> None:
    tracker = _at_another_kind(exact=True, position=70)
    tracker.on_input(ProviderInput.UPDATE, "ONE TWO THREE", 60)
    assert tracker.state.open is not None
    assert (tracker.state.open.transcript_position, tracker.state.open.exact) == (60, True)
    tracker.socket_opened(exact=True, lag=20)
    tracker.on_input(ProviderInput.START, None, 10)
    assert not tracker.will_end("1 2", 59)
    assert tracker.will_end("1 2", 60)


@pytest.mark.parametrize(
    ("bare_text", "joined"), [(True, "Hello you there"), (False, "Helloyou there")]
)
def test_turns_without_spaces_are_joined_with_one(bare_text: bool, joined: str) -> None:
    """A replay that divides the turn ends it too early for consumers."""
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 10)
    tracker.on_input(ProviderInput.UPDATE, "hello you", 40)
    tracker.socket_opened(bare_text=bare_text)
    for text, end in (("Hello", 30), ("you there", 50)):
        tracker.on_input(ProviderInput.START, None, end - 10)
        drafts = tracker.on_input(ProviderInput.END, text, end)
    assert [draft.transcript for draft in drafts] == [joined]
