"""When what was sent."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.sent import KEEP, STEP_S, Moment, SentLog


def test_before_anything_was_sent() -> None:
    log = SentLog()
    log.restart(640)
    assert log.sent_at(0) is None
    assert log.moment(5.0) == Moment(5.0, 0, 640)


def test_when_a_byte_went_out_and_how_far_the_socket_was() -> None:
    log = SentLog()
    log.restart(1_000)
    log.note(1.0, 100, 1_100)
    log.note(2.0, 300, 1_300)
    assert [log.sent_at(byte) for byte in (0, 99, 100, 299, 300, 999)] == [1, 1, 2, 2, 2, 2]
    assert log.moment(0.5) == Moment(0.5, 0, 1_000)
    assert log.moment(1.0) == Moment(1.0, 100, 1_100)
    assert log.moment(1.9) == Moment(1.9, 100, 1_100)
    assert log.moment(9.0) == Moment(9.0, 300, 1_300)


def test_what_goes_out_together_is_one_step() -> None:
    log = SentLog()
    log.note(1.0, 100, 100)
    log.note(1.0 + STEP_S / 2, 200, 200)
    assert log.sent_at(150) == 1.0
    assert log.moment(1.0).sent == 200


@given(st.integers(0, 1_000))
def test_a_few_seconds_are_remembered(count: int) -> None:
    log = SentLog()
    for nth in range(count):
        log.note(float(nth), 10 * (nth + 1), 10 * (nth + 1))
    for nth in range(max(0, count - KEEP), count):
        assert log.sent_at(10 * nth) == nth
        assert log.moment(nth + 0.5).sent == 10 * (nth + 1)
    if count > 3 * KEEP:
        assert log.sent_at(0) is None
