"""`turnbus end`: ends a session as its producer would."""

import json
from typing import Any

import pytest
from redis import Redis

from schemas import Keys
from tests.support.harness import PCM16, Harness, kinds, words
from worker.cli.bus import open_redis
from worker.cli.main import main
from worker.cli.operations import End
from worker.local.emulator.engines.script import synthesize_words


async def test_end_stops_running_session(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    async with harness.worker():
        await harness.announce("s")
        await harness.play("s", synthesize_words([1, 2], PCM16), pause_s=0.02, end=False)
        settings = harness.settings()
        async with open_redis(settings) as redis:
            await End(session="s", json=True).use(redis, settings)
        events = (await harness.until_ended("s"))["s"]
    appended = json.loads(capsys.readouterr().out)
    assert (appended["session"], appended["lane"]) == ("s", "0")
    assert words(events) == [1, 2]
    assert kinds(events)[-1] == "session.ended"


def test_end_reaches_waiting_session_in_other_lane(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str], expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["sessions", "{a}:audio:s"]
    bus.xadd(keys.sessions, {"session": "s", "lane": "a"})
    assert main(["end", "s", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows: Any = bus.xrange(keys.audio("a", "s"))
    ((entry, fields),) = rows
    assert fields == {b"end": b"1"}
    assert result == {"session": "s", "lane": "a", "entry": entry.decode()}
    assert main(["end", "s"]) == 0
    assert capsys.readouterr().out == "s: appended `end`; the last event will be session.ended\n"


def test_end_of_unknown_session_fails(keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["end", "s"]) == 1
    assert capsys.readouterr().err == "turnbus: there is no session s\n"


@pytest.mark.parametrize("settled", [True, False])
def test_end_of_ended_session_fails(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    expected_leftovers: list[str],
    settled: bool,
) -> None:
    expected_leftovers += ["sessions", "lanes", "{a}:*"]
    if not settled:  # its owner is about to end it
        bus.xadd(keys.sessions, {"session": "s", "lane": "a"})
    bus.sadd(keys.lanes, "a")
    bus.hset(keys.state("a", "s"), "status", "ended")
    bus.set(keys.audio("a", "s"), "ended")
    assert main(["end", "s"]) == 1
    assert capsys.readouterr().err == "turnbus: s is over\n"


def test_end_refuses_invalid_id(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["end", "no good"])
    assert end.value.code == 2
    assert "argument SESSION: must be 1 to 128 of" in capsys.readouterr().err
