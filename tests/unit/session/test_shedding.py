"""Shedding: the samples after dropped audio stay aligned."""

import time

import pytest
from redis.asyncio import Redis

from schemas.audio import AudioEntry, Encoding
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import EntryAges, RedisClock
from worker.core.lateness import Lateness, SentState
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.session.sender import AudioSender
from worker.session.shedding import Shedding
from worker.telemetry.counters import Counters


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_first_kept_sample_is_complete_for_any_entry_size(size: int) -> None:
    ledger = Ledger(Encoding.PCM_F32LE.width)
    sender = AudioSender(Encoding.PCM_F32LE, 16_000, ledger, Pacer(0), Counters())
    clock = RedisClock(Redis(), RedisHealth())  # not synchronised yet: equal to the local clock
    now_ms = int(time.time() * 1000)
    ages = EntryAges(clock, f"{now_ms}-0", untimed=False)
    shedding = Shedding(ages, ledger, sender, Lateness(5.0, SentState()))
    late = bytes(range(30))
    for at in range(0, len(late), size):
        entry, audio = f"{now_ms - 10_000}-{at}", late[at : at + size]
        ledger.admit(entry, AudioEntry(audio=audio))
        assert not shedding.keep(entry, audio, time.monotonic())
    assert shedding.settle(ledger.read_bytes) > 0
    assert sender.session_bytes == 28
    kept = b"\x1e\x1f"
    ledger.admit(f"{now_ms}-0", AudioEntry(audio=kept))
    sender.enqueue(kept)
    assert sender.holds_audio, "the two bytes left over and these make a sample"
