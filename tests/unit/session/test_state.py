"""The checkpoint: workers of one version and the next release sessions to each other."""

import msgspec
import pytest

from worker.core.records import LedgerState, OpenTurn, Position, SentState, TurnState
from worker.session.checkpoint import Checkpoint

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
