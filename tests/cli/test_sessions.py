"""`turnbus sessions`: waiting, running, released and orphaned sessions."""

import json
import time
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from schemas import Keys
from schemas.keys import GROUP, RELEASED
from schemas.turns import SessionError, TurnUpdate
from tests.support.harness import ON_CLUSTER_TOO, PCM16, Harness
from worker.bus.inspection import UNAVAILABLE, SessionStatus, list_sessions
from worker.cli.main import main
from worker.cli.table import format_bytes, format_duration, table
from worker.local.emulator.engines.script import ScriptEngine, synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.text import printable


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["sessions", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def announce(bus: Redis, keys: Keys, session: str, **more: str) -> bytes:
    fields: Any = {"session": session, "encoding": "pcm_s16le", "sample_rate": "16000", **more}
    entry: Any = bus.xadd(keys.sessions, fields)
    assert isinstance(entry, bytes)
    return entry


def test_empty_bus_has_no_sessions(keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys) == []
    assert main(["sessions"]) == 0
    header = "SESSION  LANE  OWNER  STATE  PROVIDER  LAG  BYTES  TURNS  LAST EVENT\n"
    assert capsys.readouterr().out == header


def test_sessions_without_worker_are_listed(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    expected_leftovers: list[str],
) -> None:
    expected_leftovers += ["sessions", "{0}:audio:*"]
    given, lost = announce(bus, keys, "given"), announce(bus, keys, "lost")
    announce(bus, keys, "fresh")
    announce(bus, keys, "ended")
    bus.xadd(keys.sessions, {"session": "no good"})
    for at, fields in ((1_000, {"audio": bytes(3_200)}), (1_100, {"end": "1"})):
        bus.xadd(keys.audio("0", "ended"), fields, id=f"{at}-0")  # type: ignore[arg-type]
    bus.xadd(keys.audio("0", "fresh"), {"audio": bytes(3_200)}, id="1000-0")
    bus.xadd(keys.audio("0", "fresh"), {"audio": bytes(1_600)}, id="3500-0")
    bus.xgroup_create(keys.sessions, GROUP, id="0")
    bus.xreadgroup(GROUP, "w1-abcd", {keys.sessions: ">"}, count=2)
    bus.xclaim(keys.sessions, GROUP, RELEASED, 0, [given.decode()])
    bus.xclaim(keys.sessions, GROUP, "w1-abcd", 0, [lost.decode()], idle=60_000)
    rows = listed(capsys)
    assert [(row["session"], row["owner"], row["state"]) for row in rows] == [
        ("given", "", "handed_over"),
        ("lost", "w1-abcd", "silent"),
        ("fresh", "", "waiting"),
        ("ended", "", "waiting"),
    ]
    fresh, ended = rows[2:]
    assert ended["lag_bytes"] == 3_200
    assert (fresh["lag_s"], fresh["lag_bytes"]) == (2.5, 4_800)
    assert (fresh["turns"], fresh["last_event"], fresh["last_event_at"]) == (0, "", 0.0)
    assert main(["sessions"]) == 0
    rows_shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[3] for row in rows_shown[1:]] == [row["state"] for row in rows]
    assert rows_shown[3] == ["fresh", "0", "-", "waiting", "-", "2.5s", "4.8k", "0", "-"]
    monkeypatch.setenv("TURNBUS_LEASE_MS", "600000")
    assert listed(capsys)[1]["state"] == "between_turns"


OTHERS = ("17-0", "*", f"{time.time() * 1e6:.0f}-0")


@pytest.mark.parametrize("others", OTHERS, ids=["count", "time", "microseconds"])
def test_lag_is_zero_if_ids_are_not_times(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    expected_leftovers: list[str],
    others: str,
) -> None:
    expected_leftovers += ["sessions", "{0}:audio:*"]
    announce(bus, keys, "call-1")
    for entry in ("7-0", others):
        bus.xadd(keys.audio("0", "call-1"), {"audio": bytes(3_200)}, id=entry)
    (row,) = listed(capsys)
    assert row["lag_s"] < 0.1
    assert row["lag_bytes"] == 6_400


@ON_CLUSTER_TOO
async def test_running_session_is_listed(
    harness: Harness, as_worker: AsyncRedis, expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["{a}:*"]
    keys = Keys(harness.prefix)

    async def status() -> SessionStatus:
        (found,) = await list_sessions(as_worker, keys, 5_000)
        return found

    async with harness.worker(worker_id="w1"):
        await harness.announce("s", lane="a")
        key = f"{harness.prefix}:{{a}}:audio:s"
        harness.audio_key = lambda session: key  # type: ignore[method-assign]
        await harness.play("s", synthesize_words([1, 2], PCM16), pause_s=0.02, end=False)
        async for event in harness.events(lane="a"):
            if event.__struct_config__.tag == "turn.update":
                break
        speaking = await status()
        await harness.play("s", synthesize_silence(700, PCM16), pause_s=0.02, end=False)
        async for event in harness.events(lane="a"):
            if event.__struct_config__.tag == "turn.end":
                break
        silent = await status()
        await harness.append("s", end="1")
        async for event in harness.events(lane="a"):
            if event.__struct_config__.tag == "session.ended":
                break
    assert (speaking.owner, speaking.state, speaking.turns) == ("w1", "in_turn", 1)
    assert speaking.provider == "cartesia"
    assert speaking.last_event in ("turn.start", "turn.update", "turn.eager_end")
    assert speaking.lag_bytes > 0
    assert (silent.state, silent.turns, silent.last_event) == ("between_turns", 1, "turn.end")
    assert silent.lag_bytes < speaking.lag_bytes + len(synthesize_silence(700, PCM16))
    assert silent.last_event_at > 0


async def test_session_without_connection_is_unconnected(
    harness: Harness, stt: TurnsServer, as_worker: AsyncRedis
) -> None:
    keys = Keys(harness.prefix)

    async def state() -> str:
        (found,) = await list_sessions(as_worker, keys, 5_000)
        return found.state

    await stt.stop()
    async with harness.worker():
        await harness.announce("s")
        await harness.play("s", synthesize_words([1, 2], PCM16), pause_s=0, end=False)
        error = await harness.until("s", SessionError)
        assert error.code == UNAVAILABLE
        assert await state() == "unconnected"
        async with TurnsServer.serve(ServerSettings(port=stt.port), ScriptEngine()):
            await harness.until("s", TurnUpdate)
            assert await state() == "in_turn"
            await harness.append("s", end="1")
            await harness.until_ended("s")


def test_reconnected_session_is_not_unconnected(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str], expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["sessions", "{0}:*"]
    announce(bus, keys, "s")
    bus.xgroup_create(keys.sessions, GROUP, id="0")
    bus.xreadgroup(GROUP, "w1-abcd", {keys.sessions: ">"})
    event = {"type": "session.error", "at": 1.0, "connection": 1, "code": UNAVAILABLE}
    fields: Any = {"session": "s", "type": "session.error", "event": json.dumps(event)}
    bus.xadd(keys.turns("0"), fields)
    states = []
    for connection in (1, 2):
        bus.hset(keys.state("0", "s"), "snapshot", json.dumps({"connection": connection}))
        states += [row["state"] for row in listed(capsys)]
    assert states == ["unconnected", "between_turns"]


def test_sessions_beyond_one_page_are_listed(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str], expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["sessions"]
    with bus.pipeline() as pipe:
        for number in range(2_100):
            fields: Any = {"session": f"s{number}"}
            pipe.xadd(keys.sessions, fields)
        pipe.xgroup_create(keys.sessions, GROUP, id="0")
        pipe.xreadgroup(GROUP, "w", {keys.sessions: ">"}, count=2_050)
        pipe.execute()
    rows = listed(capsys)
    assert [row["session"] for row in rows] == [f"s{number}" for number in range(2_100)]
    assert [row["owner"] for row in rows] == ["w"] * 2_050 + [""] * 50


def test_sessions_are_printed_as_table() -> None:
    assert table(["A", "B"], [["x\x1b[2J", "1"]]) == "A      B\nx\ufffd[2J  1"
    assert printable("fine\n") == "fine\ufffd"
    assert [format_bytes(n) for n in (0, 999, 1_000, 9_949, 9_950, 999_499, 27_000_000)] == [
        *("0", "999", "1.0k", "9.9k", "10k", "999k", "27M"),
    ]
    assert [format_duration(s) for s in (0, 9.94, 9.96, 59.4, 59.6, 187, 3_599.6, 7_500)] == [
        *("0.0s", "9.9s", "10s", "59s", "1m00s", "3m07s", "1h00m", "2h05m"),
    ]
