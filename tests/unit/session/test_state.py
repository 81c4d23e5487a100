"""The checkpoint: workers of one version and the next release sessions to each other."""

from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.audio import AudioEntry
from worker.core.ledger import Ledger
from worker.core.records import LedgerState, OpenTurn, Position, SentState, TurnState
from worker.session.checkpoint import Checkpoint, LedgerEncoder, encode_checkpoint

EARLIER = {
    "ledger": {"committed": {"entry": "5-0", "offset": 320}, "committed_bytes": 3_200},
    "turns": {"turn": 2, "open": {"transcript": "one two", "mark": 9_600}},
    "connection": 3,
    "lag_s": 0.2,
}
"""A checkpoint by a worker that does not store its sent position."""


def test_checkpoint_without_sent_uses_published_text() -> None:
    checkpoint = msgspec.json.decode(msgspec.json.encode(EARLIER), type=Checkpoint)
    assert checkpoint.sent_state == SentState(until=9_600)


@pytest.mark.parametrize(
    ("turns", "sent", "until"),
    [
        (TurnState(), SentState(), 3_200),
        (TurnState(), SentState(until=6_400), 6_400),
        (TurnState(2, OpenTurn("one", 9_600)), SentState(until=12_800), 12_800),
        (TurnState(2, OpenTurn("one", 9_600)), SentState(until=100), 9_600),
    ],
)
def test_checkpoint_sent_covers_committed_audio(
    turns: TurnState, sent: SentState, until: int
) -> None:
    ledger = LedgerState(Position("5-0", 320), 3_200)
    assert Checkpoint(ledger=ledger, turns=turns, sent=sent).sent_state.until == until


def test_earlier_worker_reads_checkpoint() -> None:
    class Earlier(msgspec.Struct, frozen=True, omit_defaults=True):
        ledger: LedgerState = LedgerState()
        turns: TurnState = TurnState()
        connection: int = 0

    written = msgspec.json.encode(Checkpoint(sent=SentState(9_600, 1.5), connection=3))
    assert msgspec.json.decode(written, type=Earlier).connection == 3


class LedgerStep(NamedTuple):
    """One step in the life of a ledger."""

    step: str
    number: int


STEPS = st.builds(
    LedgerStep,
    st.sampled_from(["audio", "audio", "other", "again", "hole", "report", "end", "rewind", "cut"]),
    st.integers(0, 30),
)


@given(st.lists(STEPS, max_size=40))
def test_encoded_ledger_equals_its_state(history: list[LedgerStep]) -> None:
    ledger = Ledger(width=2)
    encoder = LedgerEncoder(ledger)
    entry, seq = 1, 0
    for step, number in history:
        match step:
            case "audio" | "other" | "again" | "hole":
                seq += {"hole": 3, "again": 0}.get(step, 1)
                audio = bytes([number, 1, 2]) * (number % 3)
                src = "other" if step == "other" else ""
                ledger.admit(f"{entry}-0", AudioEntry(audio=audio, seq=seq, src=src))
                entry += 1
            case "report":
                ledger.mark_reported(f"{number}-0")
            case "end":
                ledger.admit(f"{entry}-0", AudioEntry(end=True))
                entry += 1
            case "rewind":
                ledger.rewind()
            case _:
                ledger.commit_to(number)
        whole = Checkpoint(ledger=ledger.state, turns=TurnState(1, OpenTurn("one", 2)), lag_s=0.2)
        for _ in range(2):  # the second one is not encoded again
            parts = Checkpoint(encoder.state, TurnState(1, OpenTurn("one", 2)), lag_s=0.2)
            assert encode_checkpoint(parts) == msgspec.json.encode(whole)
