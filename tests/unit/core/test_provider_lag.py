"""What a worker knows of the service's lag."""

from worker.core.provider_lag import MIN_TURNS, WINDOW_TURNS, ProviderLag


def test_nothing_is_known_at_first() -> None:
    lag = ProviderLag()
    for _ in range(MIN_TURNS - 1):
        lag.observe(0.2)
        assert lag.seconds is None
    lag.observe(0.2)
    assert lag.seconds == 0.2


def test_what_was_held_up_does_not_count() -> None:
    lag = ProviderLag()
    for nth in range(WINDOW_TURNS):
        lag.observe(5.0 if nth % 3 == 0 else 0.2)
    assert lag.seconds == 0.2


def test_a_service_that_changes_is_known_again() -> None:
    lag = ProviderLag()
    for _ in range(WINDOW_TURNS):
        lag.observe(0.2)
    for _ in range(WINDOW_TURNS // 2 + 1):
        lag.observe(0.9)
    assert lag.seconds == 0.9


def test_what_another_worker_knew_does_until_then() -> None:
    lag = ProviderLag()
    lag.seed(None)
    lag.seed(0.9)
    lag.seed(0.1)
    assert lag.seconds == 0.9
    for _ in range(MIN_TURNS):
        lag.observe(0.2)
    assert lag.seconds == 0.2
