"""The snapshot: workers of one version and the next hand sessions to each other."""

import msgspec
import pytest

from worker.core.lateness import SentState
from worker.core.ledger import LedgerState, Position
from worker.core.turn_tracker import OpenTurn, TurnState
from worker.session.checkpoint import Checkpoint

EARLIER = {
    "ledger": {"committed": {"entry": "5-0", "offset": 320}, "committed_bytes": 3_200},
    "turns": {"turn": 2, "open": {"transcript": "one two", "mark": 9_600}},
    "connection": 3,
    "lag_s": 0.2,
}
"""As a worker writes it that does not keep what was sent."""


def test_an_earlier_snapshot_was_sent_as_far_as_text_was_published() -> None:
    snapshot = msgspec.json.decode(msgspec.json.encode(EARLIER), type=Checkpoint)
    assert snapshot.sent_state == SentState(until=9_600)


@pytest.mark.parametrize(
    ("turns", "sent", "until"),
    [
        (TurnState(), SentState(), 3_200),
        (TurnState(), SentState(until=6_400), 6_400),
        (TurnState(2, OpenTurn("one", 9_600)), SentState(until=12_800), 12_800),
        (TurnState(2, OpenTurn("one", 9_600)), SentState(until=100), 9_600),
    ],
)
def test_a_snapshot_was_sent_as_far_as_it_says_or_covers(
    turns: TurnState, sent: SentState, until: int
) -> None:
    ledger = LedgerState(Position("5-0", 320), 3_200)
    assert Checkpoint(ledger=ledger, turns=turns, sent=sent).sent_state.until == until


def test_an_earlier_worker_reads_the_snapshot() -> None:
    class Earlier(msgspec.Struct, frozen=True, omit_defaults=True):
        ledger: LedgerState = LedgerState()
        turns: TurnState = TurnState()
        connection: int = 0

    written = msgspec.json.encode(Checkpoint(sent=SentState(9_600, 1.5), connection=3))
    assert msgspec.json.decode(written, type=Earlier).connection == 3
