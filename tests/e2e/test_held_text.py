"""Held-back text is published exactly once, whatever happens next."""

from collections.abc import Callable
from typing import cast

import pytest

from schemas.audio import AudioEntry, Encoding, SessionEntry
from tests.simulation.lines import LATER, Line, boundary_of
from tests.simulation.speech import AUDIO
from worker.core.records import EventDraft
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.session.checkpoint import Checkpoint
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.cartesia import CARTESIA
from worker.stt.events import TurnEvent
from worker.telemetry.counters import Counters

SECOND = 16_000
"""Bytes in one second of audio."""


class Published:
    """Collects published events in place of the publisher."""

    def __init__(self) -> None:
        self.drafts: list[EventDraft] = []

    def publish(self, drafts: list[EventDraft], *_: object) -> None:
        self.drafts += drafts

    def request_commit(self) -> None: ...


class Call:
    """A session in which a text of one character delays the next update by 2 s."""

    def __init__(self) -> None:
        entry = SessionEntry(
            session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate
        )
        state = SessionState(entry, Checkpoint(), max_lag_s=0.0, provider="p")
        self.ledger, self.tracker = state.ledger, state.tracker
        self.sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, self.ledger, Pacer(0), Counters()
        )
        self.publisher = Published()
        boundary = boundary_of(self.sender, StallDetector(LATER), 0.1)
        self.receiver = MessageReceiver(
            state,
            boundary,
            self.sender,
            cast("EventPublisher", self.publisher),
            UpdateThrottle(2_000_000),
        )
        self.at = 0.0
        self._entries = 0
        self.connect()

    def connect(self) -> None:
        self.receiver.socket_opened(LATER + self.at, CARTESIA, progressed=True)
        self.sender.attach(Line(), LATER + self.at)

    def receive(self, kind: ProviderInput, text: str | None = None, after_s: float = 0.5) -> None:
        """Send audio of this duration, then receive an event."""
        self.at += after_s
        self._entries += 1
        self.ledger.admit(f"{self._entries}-0", AudioEntry(audio=bytes(int(after_s * SECOND))))
        self.sender.enqueue(bytes(int(after_s * SECOND)))
        self.sender.drain(LATER + self.at)
        arrival = self.sender.send_log.moment(LATER + self.at)
        self.receiver.on_message(arrival, 0, begins=kind is ProviderInput.START)
        self.receiver.on_turn_event(TurnEvent(kind, text), arrival)

    @property
    def published(self) -> list[tuple[str, str | None]]:
        """Return kind and text of each event published since the turn began."""
        kinds = [
            (draft.kind.removeprefix("turn."), draft.transcript) for draft in self.publisher.drafts
        ]
        return kinds[1:]


@pytest.fixture
def call() -> Call:
    """Return a call in which `a` is published and `a b` is held back."""
    call = Call()
    call.receive(ProviderInput.START)
    call.receive(ProviderInput.UPDATE, "a")
    call.receive(ProviderInput.UPDATE, "a b")
    assert call.published == [("update", "a")]
    return call


def test_held_text_is_published_when_its_interval_is_over(call: Call) -> None:
    call.receiver.release_update(LATER + call.at + 1.0)
    assert call.published == [("update", "a")]
    call.receiver.release_update(LATER + call.at + 1.5)
    call.receiver.release_update(LATER + call.at + 9.0)
    assert call.published == [("update", "a"), ("update", "a b")]


def test_held_text_is_replaced_by_a_later_text(call: Call) -> None:
    call.receive(ProviderInput.UPDATE, "a b c")
    call.receive(ProviderInput.UPDATE, "a b c d", after_s=3.0)
    assert call.published == [("update", "a"), ("update", "a b c d")]


def test_held_text_is_not_replaced_by_a_shorter_one(call: Call) -> None:
    call.receive(ProviderInput.UPDATE, "a")
    call.receiver.release_update(LATER + call.at + 5.0)
    assert call.published[-1] == ("update", "a b")


MESSAGES: dict[str, tuple[TurnEvent, list[tuple[str, str | None]]]] = {
    "eager end": (TurnEvent(ProviderInput.EAGER_END, "a b"), [("eager_end", "a b")]),
    "eager end with more": (TurnEvent(ProviderInput.EAGER_END, "a b c"), [("eager_end", "a b c")]),
    "eager end with less": (
        TurnEvent(ProviderInput.EAGER_END, "a"),
        [("update", "a b"), ("eager_end", "a b")],
    ),
    "end": (TurnEvent(ProviderInput.END, "a b"), [("end", "a b")]),
    "end without text": (TurnEvent(ProviderInput.END), [("end", "a b")]),
    "end worded otherwise": (
        TurnEvent(ProviderInput.END, "A"),
        [("update", "a b"), ("end", "a b")],
    ),
    "resume": (TurnEvent(ProviderInput.RESUME), [("update", "a b")]),
    "start": (TurnEvent(ProviderInput.START), [("update", "a b")]),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_held_text_is_published_with_the_next_event(call: Call, case: str) -> None:
    message, published = MESSAGES[case]
    call.receive(message.kind, message.text)
    assert call.published == [("update", "a"), *published]


ENDS: dict[str, Callable[[MessageReceiver], None]] = {
    "flushed": lambda receiver: receiver.commit_all_sent("close"),
    "given up": lambda receiver: receiver.commit_all_sent("watchdog"),
    "broken off": lambda receiver: receiver.end_turn_early(),
}


@pytest.mark.parametrize("case", ENDS)
def test_held_text_is_published_before_the_turn_ends(call: Call, case: str) -> None:
    ENDS[case](call.receiver)
    assert call.published == [("update", "a"), ("update", "a b"), ("end", "a b")]


def test_text_after_an_eager_end_is_not_held(call: Call) -> None:
    call.receive(ProviderInput.EAGER_END, "a b")
    call.receive(ProviderInput.UPDATE, "a b c")
    assert call.published[-2:] == [("resume", None), ("update", "a b c")]


def test_next_turn_begins_without_delay(call: Call) -> None:
    call.receive(ProviderInput.END, "a b")
    call.receive(ProviderInput.START)
    call.receive(ProviderInput.UPDATE, "c")
    assert call.published[-2:] == [("start", None), ("update", "c")]


def test_replay_mark_is_where_published_text_arrived(call: Call) -> None:
    """Held-back text is not published, so a replay must only cover the text before it."""
    assert call.tracker.last_growth == 1 * SECOND
    call.receiver.release_update(LATER + call.at + 5.0)
    assert call.tracker.last_growth == int(1.5 * SECOND)


@pytest.mark.parametrize("published", [True, False])
def test_replay_publishes_held_text_once(call: Call, published: bool) -> None:
    """A lost socket publishes the text. After a killed worker, the next owner does, by replay."""
    if published:
        call.receiver.publish_text()
    call.receiver.forget()
    call.ledger.rewind()
    call.sender.detach()
    call.connect()
    call.receive(ProviderInput.START)
    call.receive(ProviderInput.UPDATE, "a")
    call.receive(ProviderInput.UPDATE, "a b")
    call.receive(ProviderInput.UPDATE, "a b c", after_s=6.0)
    call.receive(ProviderInput.END, "a b c")
    texts = [text for kind, text in call.published if kind == "update"]
    assert texts == ["a", "a b", "a b c"]
    assert call.published[-1] == ("end", "a b c")
