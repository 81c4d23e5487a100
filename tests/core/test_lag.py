"""What a worker knows of the service's lag."""

from worker.core.lag import ENOUGH, REMEMBERED, UsualLag


def test_nothing_is_known_at_first() -> None:
    lag = UsualLag()
    for _ in range(ENOUGH - 1):
        lag.note(0.2)
        assert lag.seconds is None
    lag.note(0.2)
    assert lag.seconds == 0.2


def test_what_was_held_up_does_not_count() -> None:
    lag = UsualLag()
    for nth in range(REMEMBERED):
        lag.note(5.0 if nth % 3 == 0 else 0.2)
    assert lag.seconds == 0.2


def test_a_service_that_changes_is_known_again() -> None:
    lag = UsualLag()
    for _ in range(REMEMBERED):
        lag.note(0.2)
    for _ in range(REMEMBERED // 2 + 1):
        lag.note(0.9)
    assert lag.seconds == 0.9


def test_what_another_worker_knew_does_until_then() -> None:
    lag = UsualLag()
    lag.inherit(None)
    lag.inherit(0.9)
    lag.inherit(0.1)
    assert lag.seconds == 0.9
    for _ in range(ENOUGH):
        lag.note(0.2)
    assert lag.seconds == 0.2
