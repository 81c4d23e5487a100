"""Sessions that a worker leaves to others: the list is bounded, and forgets after a time."""

from worker.leases.declined import DECLINED_S, MAX_DECLINED, DeclinedSessions


def test_declined_session_is_left_for_a_minute() -> None:
    declined = DeclinedSessions()
    declined.add("1-0", "9-0", 100.0)
    declined.add("2-0", "9-0", 110.0)
    assert declined.current(100.0 + DECLINED_S - 1) == ["1-0", "2-0"]
    assert declined.current(100.0 + DECLINED_S) == ["2-0"]
    declined.add("2-0", "9-0", 165.0)
    assert declined.current(110.0 + DECLINED_S) == ["2-0"]
    assert declined.current(165.0 + DECLINED_S) == []


def test_session_may_be_left_for_less() -> None:
    declined = DeclinedSessions()
    declined.add("1-0", "9-0", 100.0, 2.0)
    assert declined.current(101.0) == ["1-0"]
    assert declined.current(102.0) == []


def test_producer_is_silent_while_the_last_audio_is_the_same() -> None:
    declined = DeclinedSessions()
    assert declined.silent_since("1-0", "9-0", 100.0) == 100.0
    declined.add("1-0", "9-0", 100.0)
    declined.add("1-0", "9-0", 200.0)
    assert declined.silent_since("1-0", "9-0", 300.0) == 100.0
    assert declined.silent_since("1-0", "9-1", 300.0) == 300.0
    declined.add("1-0", "9-1", 300.0)
    assert declined.silent_since("1-0", "9-1", 400.0) == 300.0
    declined.discard("1-0")
    assert declined.silent_since("1-0", "9-1", 500.0) == 500.0
    assert declined.current(301.0) == []


def test_latest_declined_sessions_are_remembered() -> None:
    declined = DeclinedSessions()
    for number in range(MAX_DECLINED + 5):
        declined.add(f"{number}-0", "0-1", float(number) / 1_000)
    assert declined.current(1.0) == [f"{number}-0" for number in range(5, MAX_DECLINED + 5)]
