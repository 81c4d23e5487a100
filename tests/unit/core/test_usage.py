"""Usage: audio, filler and sockets by provider, over sockets and owners."""

from schemas.turns import Usage
from worker.core.usage import UsageLog

SECOND = 16_000


def test_session_without_a_socket_used_nothing() -> None:
    log = UsageLog(SECOND, {})
    log.closed(1.0, 0, 0, 0)
    assert log.state(2.0, 0, 0, 0) == {}


def test_usage_counts_replays_and_filler() -> None:
    log = UsageLog(SECOND, {})
    log.opened("one", 10.0, 0, 0)
    assert log.state(12.0, 2 * SECOND, 3 * SECOND, SECOND) == {"one": Usage(2.0, 0.0, 1.0, 1, 2.0)}
    log.closed(14.0, 4 * SECOND, 5 * SECOND, SECOND)
    log.opened("one", 15.0, SECOND, 4 * SECOND)  # the first second is committed
    assert log.state(16.0, 2 * SECOND, SECOND, 0) == {"one": Usage(5.0, 1.0, 1.0, 2, 5.0)}
    log.closed(20.0, 6 * SECOND, 5 * SECOND, 0)
    assert log.state(99.0, 0, 0, 0) == {"one": Usage(9.0, 3.0, 1.0, 2, 9.0)}


def test_usage_is_kept_by_provider_and_by_owner() -> None:
    before = {"one": Usage(2.0, 0.0, 0.0, 1, 2.0)}
    log = UsageLog(SECOND, before)
    log.opened("two", 0.0, 0, 2 * SECOND)
    log.closed(1.0, SECOND, SECOND, 0)
    assert log.state(5.0, 0, 0, 0) == before | {"two": Usage(1.0, 1.0, 0.0, 1, 1.0)}
