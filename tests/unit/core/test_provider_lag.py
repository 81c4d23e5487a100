"""The worker's estimate of the provider's lag."""

from worker.core.provider_lag import MIN_TURNS, WINDOW_TURNS, ProviderLag


def test_lag_is_unknown_at_first() -> None:
    lag = ProviderLag()
    for _ in range(MIN_TURNS - 1):
        lag.observe(0.2)
        assert lag.seconds is None
    lag.observe(0.2)
    assert lag.seconds == 0.2


def test_delayed_events_do_not_count() -> None:
    lag = ProviderLag()
    for nth in range(WINDOW_TURNS):
        lag.observe(5.0 if nth % 3 == 0 else 0.2)
    assert lag.seconds == 0.2


def test_lag_estimate_follows_change() -> None:
    lag = ProviderLag()
    for _ in range(WINDOW_TURNS):
        lag.observe(0.2)
    for _ in range(WINDOW_TURNS // 2 + 1):
        lag.observe(0.9)
    assert lag.seconds == 0.9


def test_lag_of_earlier_worker_is_initial_estimate() -> None:
    lag = ProviderLag()
    lag.seed(None)
    lag.seed(0.9)
    lag.seed(0.1)
    assert lag.seconds == 0.9
    for _ in range(MIN_TURNS):
        lag.observe(0.2)
    assert lag.seconds == 0.2
