"""The real server follows the clock that a test sets, and loses what a test cuts from its log."""

import shutil
from collections.abc import Iterator

import pytest

from tests.simulation.redis.resp import CommandError
from tests.simulation.replay.frozen_server import ClockNotFrozenError, FrozenServer
from worker.local.redis import find_server

NOW_US = 1_700_000_000_123_456
NOW_MS = NOW_US // 1_000
TIMES = b"return {redis.call('TIME'), redis.call('XADD', KEYS[1], '*', 'n', '1')}"


@pytest.fixture(scope="module")
def server() -> Iterator[FrozenServer]:
    try:
        with FrozenServer.start(find_server(), NOW_US) as server:
            yield server
    except ClockNotFrozenError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def empty(server: FrozenServer) -> None:
    server.set_time(NOW_US)
    server.run(b"FLUSHALL")


def test_time_stands_still_and_moves_both_ways(server: FrozenServer) -> None:
    for now_us in (NOW_US, NOW_US, NOW_US + 1, NOW_US + 10**12, NOW_US - 10**9):
        server.set_time(now_us)
        now = [b"%d" % (now_us // 1_000_000), b"%d" % (now_us % 1_000_000)]
        assert server.run(b"TIME") == now
        server.run(b"UNLINK", b"a")
        assert server.run(b"EVAL", TIMES, b"1", b"a") == [now, b"%d-0" % (now_us // 1_000)]


def test_keys_expire_at_their_millisecond(server: FrozenServer) -> None:
    server.run(b"SET", b"a", b"x", b"PX", b"100")
    server.set_time((NOW_MS + 99) * 1_000)
    assert server.run(b"PTTL", b"a") == 1
    server.set_time((NOW_MS + 101) * 1_000)
    assert server.run(b"GET", b"a") is None


def test_idle_entries_are_claimed_at_their_millisecond(server: FrozenServer) -> None:
    server.run(b"XGROUP", b"CREATE", b"a", b"g", b"0", b"MKSTREAM")
    server.run(b"XADD", b"a", b"1-0", b"n", b"1")
    server.run(b"XREADGROUP", b"GROUP", b"g", b"me", b"STREAMS", b"a", b">")
    claim = (b"XAUTOCLAIM", b"a", b"g", b"other", b"5000", b"0", b"JUSTID")
    server.set_time((NOW_MS + 4_999) * 1_000)
    assert server.run(*claim) == [b"0-0", [], []]
    server.set_time((NOW_MS + 5_000) * 1_000)
    assert server.run(*claim) == [b"0-0", [b"1-0"], []]


def test_restart_keeps_the_log_up_to_a_size(server: FrozenServer) -> None:
    server.run(b"SET", b"a", b"kept", b"PX", b"1000")
    size = server.log_size
    server.run(b"SET", b"b", b"lost")
    server.restart(size)
    assert server.run(b"GET", b"a") == b"kept"
    assert server.run(b"PTTL", b"a") == 1_000
    assert server.run(b"GET", b"b") is None
    assert isinstance(server.run(b"EVALSHA", b"0" * 40, b"0"), CommandError)


def test_machine_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = find_server()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with (
        pytest.raises(ClockNotFrozenError, match="C compiler"),
        FrozenServer.start(binary, NOW_US),
    ):
        pass
