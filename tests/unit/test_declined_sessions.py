"""Sessions that a worker leaves to others: the list is bounded, and forgets after a time."""

from worker.leases.declined import DECLINED_S, MAX_DECLINED, DeclinedSessions


def test_declined_session_is_left_for_a_minute() -> None:
    declined = DeclinedSessions()
    declined.add("1-0", 100.0)
    declined.add("2-0", 110.0)
    assert declined.current(100.0 + DECLINED_S - 1) == ["1-0", "2-0"]
    assert declined.current(100.0 + DECLINED_S) == ["2-0"]
    declined.add("2-0", 165.0)
    assert declined.current(110.0 + DECLINED_S) == ["2-0"]
    assert declined.current(165.0 + DECLINED_S) == []


def test_latest_declined_sessions_are_remembered() -> None:
    declined = DeclinedSessions()
    for number in range(MAX_DECLINED + 5):
        declined.add(f"{number}-0", float(number) / 1_000)
    assert declined.current(1.0) == [f"{number}-0" for number in range(5, MAX_DECLINED + 5)]
