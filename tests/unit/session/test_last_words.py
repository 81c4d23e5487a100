"""The last words of a turn that moved to a provider without times are published, with its end.

Its messages come later than the exact times of the first provider, by its lag. The producer has
stopped, so that no audio of the session follows the last word.
"""

from typing import cast

import pytest

from schemas.audio import AudioEntry, Encoding, SessionEntry
from tests.simulation.lines import LATER, Line, boundary_of
from tests.simulation.speech import AUDIO
from worker.core.records import EventDraft, OpenTurn, TurnState
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.session.checkpoint import Checkpoint
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.sender import FILLER_STEP_MS, AudioSender
from worker.session.state import SessionState
from worker.stt.cartesia import CARTESIA
from worker.stt.events import TurnEvent
from worker.telemetry.counters import Counters

LAG_S = 0.3
REPLAYED = "1 2 three four"
"""Shorter than the published text, and yet one word more."""


class _Published:
    """Collects the ends of turns in place of the publisher."""

    def __init__(self) -> None:
        self.ends: list[tuple[str | None, str | None]] = []

    def publish(self, drafts: list[EventDraft], *_: object) -> None:
        ends = [draft for draft in drafts if draft.kind == "turn.end"]
        self.ends += [(draft.transcript, draft.reason) for draft in ends]

    def request_commit(self) -> None: ...


class _Call:
    """A turn of which provider flux transcribed 0.9 s; all of its 1.1 s are sent to cartesia."""

    def __init__(self) -> None:
        entry = SessionEntry(
            session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate
        )
        reached = AUDIO.bytes_per_s * 9 // 10
        turn = OpenTurn("one two three", transcript_position=reached, exact=True)
        checkpoint = Checkpoint(turns=TurnState(0, turn))
        state = SessionState(entry, checkpoint, max_lag_s=0.0, provider="flux")
        self.sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, state.ledger, Pacer(0), Counters()
        )
        self.published = _Published()
        self.receiver = MessageReceiver(
            state,
            boundary_of(self.sender, StallDetector(LATER), LAG_S),
            self.sender,
            cast("EventPublisher", self.published),
            UpdateThrottle(0),
        )
        self.receiver.socket_opened(LATER, CARTESIA, progressed=True)
        self.sender.attach(Line(), LATER)
        chunk = bytes(AUDIO.bytes_per_s // 10)
        for number in range(11):
            state.ledger.admit(f"{number}-0", AudioEntry(audio=chunk))
            self.sender.enqueue(chunk)
        self.sender.drain(LATER)

    def fill(self, seconds: float) -> None:
        """Send filler for this time after the audio."""
        for step in range(1, round(1_000 * seconds / FILLER_STEP_MS) + 1):
            self.sender.send_silence(LATER + step * FILLER_STEP_MS / 1_000)

    def end(self, after_s: float) -> None:
        """Receive the turn with its end, this time after the audio was sent."""
        for kind, text in ((ProviderInput.START, None), (ProviderInput.END, REPLAYED)):
            arrival = self.sender.send_log.moment(LATER + after_s)
            self.receiver.on_message(arrival, 0, begins=kind is ProviderInput.START)
            self.receiver.on_turn_event(TurnEvent(kind, text), arrival)


@pytest.mark.parametrize("after_s", [0.2, 0.5, 2.0])
def test_filler_after_the_last_word_lets_the_turn_end(after_s: float) -> None:
    """What arrives by its lag after the last audio is about all of it."""
    call = _Call()
    call.fill(after_s)
    call.end(after_s)
    assert call.published.ends == [("one two three four", "model")]


def test_end_within_the_lag_waits_for_words_that_may_follow() -> None:
    call = _Call()
    call.end(0.05)
    assert call.published.ends == []


def test_flush_publishes_words_of_an_end_within_the_lag() -> None:
    """The flush shows that no word follows."""
    call = _Call()
    call.end(0.05)
    call.receiver.commit_all_sent("close")
    assert call.published.ends == [("one two three four", "close")]
