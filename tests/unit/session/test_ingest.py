"""The ingest: the samples after dropped audio stay aligned."""

import time
from types import SimpleNamespace
from typing import cast

import pytest
from redis.asyncio import Redis

from schemas.audio import Encoding, SessionEntry
from tests.support.commits import TestPublisher
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import EntryAges, RedisClock
from worker.context import WorkerContext
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_boundary import ProviderLag
from worker.event_loop import StallDetector
from worker.session.boundary import TurnBoundaryFinder
from worker.session.checkpoint import Checkpoint
from worker.session.ingest import AudioIngest
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.telemetry.counters import Counters


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_first_kept_sample_is_complete_for_any_entry_size(size: int) -> None:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_F32LE, sample_rate=1_000)
    state = SessionState(entry, Checkpoint(), max_lag_s=5.0, provider="p")
    sender = AudioSender(entry.encoding, entry.sample_rate, state.ledger, Pacer(0), Counters())
    clock = RedisClock(Redis(), RedisHealth())  # not synchronised yet: equal to the local clock
    now_ms = int(time.time() * 1000)
    published = TestPublisher(entry, state, sender)
    boundary = TurnBoundaryFinder(sender, StallDetector(time.monotonic()), ProviderLag())
    receiver = MessageReceiver(state, boundary, sender, published.publisher, UpdateThrottle(0))
    stats = Counters()
    context = cast("WorkerContext", SimpleNamespace(stats=stats))
    ingest = AudioIngest(
        context,
        state,
        EntryAges(clock, f"{now_ms}-0", untimed=False),
        sender,
        receiver,
        published.publisher,
        Reports(context, "audio", entry.session, state.notices, published.publisher),
    )
    late = bytes(range(30))
    entries = [
        [f"{now_ms - 10_000}-{at}".encode(), [b"audio", late[at : at + size]]]
        for at in range(0, len(late), size)
    ]
    ingest.accept(entries, time.monotonic(), live=True)
    assert sender.is_drained
    kept = b"\x1e\x1f"
    ingest.accept([[f"{now_ms}-0".encode(), [b"audio", kept]]], time.monotonic(), live=True)
    assert sender.session_bytes == 28
    assert sender.has_whole_sample, "the two bytes left over and these make a sample"
    gaps = [event for event in published.events() if event["type"] == "audio.gap"]
    assert [(gap["reason"], gap["missing_ms"]) for gap in gaps] == [("backlog", 7)]
