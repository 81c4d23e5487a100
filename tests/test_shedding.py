"""Shedding: what is dropped leaves the samples after it whole."""

import time

import pytest
from redis.asyncio import Redis

from schemas.audio import AudioEntry, Encoding
from worker.bus.clock import BusClock, EntryAges
from worker.bus.connection import BusHealth
from worker.core.lateness import Lateness, SentState
from worker.core.ledger import Ledger
from worker.core.pacing import Pacer
from worker.sessions.shedding import Shedding
from worker.sessions.uplink import Uplink
from worker.telemetry.stats import Stats


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_the_first_sample_kept_is_whole_however_small_the_entries(size: int) -> None:
    ledger = Ledger(Encoding.PCM_F32LE.width)
    uplink = Uplink(Encoding.PCM_F32LE, 16_000, ledger, Pacer(0), Stats())
    clock = BusClock(Redis(), BusHealth())  # not asked yet: as ours
    now_ms = int(time.time() * 1000)
    ages = EntryAges(clock, f"{now_ms}-0", untimed=False)
    shedding = Shedding(ages, ledger, uplink, Lateness(5.0, SentState()))
    late = bytes(range(30))
    for at in range(0, len(late), size):
        entry, audio = f"{now_ms - 10_000}-{at}", late[at : at + size]
        ledger.admit(entry, AudioEntry(audio=audio))
        assert not shedding.keep(entry, audio, time.monotonic())
    assert shedding.settle(ledger.taken) > 0
    assert uplink.fed == 28
    kept = b"\x1e\x1f"
    ledger.admit(f"{now_ms}-0", AudioEntry(audio=kept))
    uplink.take(kept)
    assert uplink.holds_audio, "the two bytes left over and these make a sample"
