"""Arrival times from entry ids: an id that a producer chose does not affect any session."""

import time

import pytest

from worker.bus.audio_reader import _appended_at
from worker.core.polling import ClockOffset

HOUR = 3_600


IDS = ("1-0", f"{time.time():.0f}-0", f"{time.time() * 1e6:.0f}-0")


@pytest.mark.parametrize("own", IDS, ids=["count", "seconds", "microseconds"])
def test_producers_own_id_does_not_shift_the_lanes_clock(own: str) -> None:
    clock, now = ClockOffset(), 1_000.0
    stamp_ms = int(time.time() * 1_000)
    assert _appended_at(clock, b"%d-0" % stamp_ms, now) == pytest.approx(now)
    assert _appended_at(clock, own.encode(), now + 0.1) == now + 0.1
    assert _appended_at(clock, b"%d-0" % (stamp_ms + 200), now + 0.3) == pytest.approx(now + 0.2)
