"""The log of sent bytes and their times."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.send_log import MAX_SAMPLES, MIN_SAMPLES, RESOLUTION_S, SendLog, SendPosition


def test_send_log_is_empty_at_first() -> None:
    log = SendLog()
    log.restart(640)
    assert log.sent_at(0) is None
    assert log.moment(5.0) == SendPosition(5.0, 0, 640)


def test_send_log_maps_bytes_to_times_and_back() -> None:
    log = SendLog()
    log.restart(1_000)
    log.add(1.0, 100, 1_100)
    log.add(2.0, 300, 1_300)
    assert [log.sent_at(byte) for byte in (0, 99, 100, 299, 300, 999)] == [1, 1, 2, 2, 2, 2]
    assert log.moment(0.5) == SendPosition(0.5, 0, 1_000)
    assert log.moment(1.0) == SendPosition(1.0, 100, 1_100)
    assert log.moment(1.9) == SendPosition(1.9, 100, 1_100)
    assert log.moment(9.0) == SendPosition(9.0, 300, 1_300)


def test_bytes_sent_together_are_one_step() -> None:
    log = SendLog()
    log.add(1.0, 100, 100)
    log.add(1.0 + RESOLUTION_S / 2, 200, 200)
    assert log.sent_at(150) == 1.0
    assert log.moment(1.0).socket_bytes == 200


@given(st.integers(0, 1_000))
def test_send_log_keeps_a_few_seconds(count: int) -> None:
    log = SendLog()
    for nth in range(count):
        log.add(float(nth), 10 * (nth + 1), 10 * (nth + 1))
    for nth in range(max(0, count - MIN_SAMPLES), count):
        assert log.sent_at(10 * nth) == nth
        assert log.moment(nth + 0.5).socket_bytes == 10 * (nth + 1)
    if count > MAX_SAMPLES:
        assert log.sent_at(0) is None
