"""The times of a turn's words: those of its whole text, or none."""

from typing import cast

import pytest

from schemas.audio import AudioEntry, Encoding, SessionEntry
from tests.simulation.lines import LATER, Line, boundary_of
from tests.simulation.speech import AUDIO
from worker.core.records import EventDraft, OpenTurn, TurnState, TurnTimes
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.session.checkpoint import Checkpoint
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.events import TimedWord, TurnEvent
from worker.stt.flux import FLUX
from worker.telemetry.counters import Counters


class _Published:
    """Collects the times of published ends in place of the publisher."""

    def __init__(self) -> None:
        self.ends: list[tuple[str | None, TurnTimes | None]] = []

    def publish(self, drafts: list[EventDraft], _: float | None, times: TurnTimes | None) -> None:
        ends = [draft for draft in drafts if draft.kind == "turn.end"]
        self.ends += [(draft.transcript, times) for draft in ends]

    def request_commit(self) -> None: ...


class _Call:
    """A session at provider flux, of which a minute of audio was sent."""

    def __init__(self, turn: OpenTurn | None = None) -> None:
        entry = SessionEntry(
            session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate
        )
        checkpoint = Checkpoint(turns=TurnState(0, turn))
        state = SessionState(entry, checkpoint, max_lag_s=0.0, provider="p")
        self._sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, state.ledger, Pacer(0), Counters()
        )
        self.published = _Published()
        self._receiver = MessageReceiver(
            state,
            boundary_of(self._sender, StallDetector(LATER), 0.1),
            self._sender,
            cast("EventPublisher", self.published),
            UpdateThrottle(0),
        )
        self._receiver.socket_opened(LATER, FLUX, progressed=True)
        self._sender.attach(Line(), LATER)
        audio = bytes(60 * AUDIO.bytes_per_s)
        state.ledger.admit("1-0", AudioEntry(audio=audio))
        self._sender.enqueue(audio)
        self._sender.drain(LATER)

    def receive(self, kind: ProviderInput, at_ms: float, *words: str) -> None:
        """Receive an event of these words, which were spoken one each 100 ms before."""
        begins = (at_ms - 100 * (len(words) - at) for at in range(len(words)))
        timed = tuple(TimedWord(word, at, at + 100) for word, at in zip(words, begins, strict=True))
        event = TurnEvent(kind, " ".join(words), at_ms, timed)
        self._receiver.on_turn_event(event, self._sender.send_log.moment(LATER))


def test_times_are_those_of_the_words() -> None:
    call = _Call()
    call.receive(ProviderInput.START, 1_000, "a")
    call.receive(ProviderInput.END, 2_000, "a", "b")
    assert call.published.ends == [("a b", TurnTimes(1_800, 2_000))]


@pytest.mark.parametrize(
    ("begun", "text"), [(OpenTurn("a b", committed_text="a"), "a b c"), (OpenTurn("b"), "b c")]
)
def test_times_are_absent_if_the_beginning_is_not_sent_again(begun: OpenTurn, text: str) -> None:
    """It was transcribed by a provider without times."""
    call = _Call(begun)
    call.receive(ProviderInput.START, 1_000, "b")
    call.receive(ProviderInput.END, 2_000, "b", "c")
    known = None if begun.committed_text else TurnTimes(1_800, 2_000)
    assert call.published.ends == [(text, known)]


def test_words_of_a_second_end_are_not_those_of_the_next_turn() -> None:
    call = _Call()
    call.receive(ProviderInput.START, 1_000, "a")
    call.receive(ProviderInput.END, 2_000, "a")
    call.receive(ProviderInput.END, 2_000, "a")
    call.receive(ProviderInput.START, 3_000, "b")
    call.receive(ProviderInput.END, 4_000, "b")
    assert call.published.ends == [
        ("a", TurnTimes(1_900, 2_000)),
        ("b", TurnTimes(3_900, 4_000)),
    ]
