"""The ingest: the samples after dropped audio stay aligned."""

import time
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest
from redis.asyncio import Redis

from schemas.audio import Encoding, SessionEntry
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import EntryAges, RedisClock
from worker.context import WorkerContext
from worker.core.send_limits import Pacer
from worker.session.checkpoint import Checkpoint
from worker.session.ingest import AudioIngest
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.telemetry.counters import Counters


class Consumer:
    """Stands for the receiver and the publisher; commits, and collects gaps."""

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self.lane = "0"
        self.gaps = Counter[str]()

    def commit(self, position: int) -> bool:
        return self._state.ledger.commit_to(position)

    def end_turn_early(self) -> None: ...

    def publish_gap(self, missing_ms: int, reason: str) -> None:
        self.gaps[reason] += missing_ms


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_first_kept_sample_is_complete_for_any_entry_size(size: int) -> None:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_F32LE, sample_rate=1_000)
    state = SessionState(entry, Checkpoint(), max_lag_s=5.0)
    sender = AudioSender(entry.encoding, entry.sample_rate, state.ledger, Pacer(0), Counters())
    clock = RedisClock(Redis(), RedisHealth())  # not synchronised yet: equal to the local clock
    now_ms = int(time.time() * 1000)
    consumer = Consumer(state)
    ingest = AudioIngest(
        cast("WorkerContext", SimpleNamespace(stats=Counters())),
        state,
        EntryAges(clock, f"{now_ms}-0", untimed=False),
        sender,
        cast("MessageReceiver", consumer),
        cast("EventPublisher", consumer),
        cast("Reports", SimpleNamespace(repeating=False)),
    )
    late = bytes(range(30))
    entries = [
        (f"{now_ms - 10_000}-{at}".encode(), {b"audio": late[at : at + size]})
        for at in range(0, len(late), size)
    ]
    ingest.accept(entries, time.monotonic(), live=True)
    assert sender.empty
    kept = b"\x1e\x1f"
    ingest.accept([(f"{now_ms}-0".encode(), {b"audio": kept})], time.monotonic(), live=True)
    assert sender.session_bytes == 28
    assert sender.holds_audio, "the two bytes left over and these make a sample"
    assert consumer.gaps == {"backlog": 7}
