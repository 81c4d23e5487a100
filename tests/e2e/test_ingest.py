"""The gateway as a process: calls of carriers become sessions, and no word is lost."""

import json
import signal
import uuid
from pathlib import Path
from urllib.parse import urlencode

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from schemas.turns import SessionEnded, SessionMark, SessionStarted, TurnEnd, TurnStart
from tests.support.acl import GuardedRedis
from tests.support.gateway import TwilioCall, dial, frames, gateway, raw_url, speech
from tests.support.harness import PCM16, Harness, check_order, staged, words
from tests.support.polling import eventually
from worker.local.emulator.server import TurnsServer


async def test_twilio_call_becomes_turns(harness: Harness, tmp_path: Path) -> None:
    call = TwilioCall("MZ1", ("inbound", "outbound"))
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with dial(ingest.url, call) as socket, anyio.create_task_group() as tasks:
            tasks.start_soon(call.play, socket, speech(1, first=100), "outbound")
            await call.play(socket, speech(1))
            await socket.send(call.dtmf("5"))
            await call.play(socket, speech(1, first=3))
            await socket.send(call.stop())
        events = await harness.until_ended("MZ1", "MZ1.outbound")
    inbound, outbound = events.values()
    for leg in (inbound, outbound):
        check_order(leg)
        assert {event.group for event in leg} == {call.call}
    assert words(inbound) == [*range(6)]
    assert words(outbound) == [100, 101, 102]
    (mark,) = [event for event in inbound if isinstance(event, SessionMark)]
    assert mark.mark == {"dtmf": "5"}
    started = inbound[0]
    assert isinstance(started, SessionStarted)
    assert started.metadata["caller"] == "+15550100"


async def test_call_survives_killed_worker(harness: Harness, tmp_path: Path) -> None:
    call = TwilioCall("MZ2")
    async with (
        harness.worker_process("first", tmp_path / "first", lease_ms="2000") as first,
        gateway(harness, tmp_path / "log") as ingest,
        dial(ingest.url, call) as socket,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(call.play_all, socket, speech(3))
        await harness.until("MZ2", TurnStart)
        first.send_signal(signal.SIGKILL)
        async with harness.worker(worker_id="second", lease_ms=2000, replay_speed=2.0):
            events = (await harness.until_ended("MZ2"))["MZ2"]
    check_order(events)
    assert words(events) == [*range(9)]


async def test_call_survives_redis_restart(stt: TurnsServer, tmp_path: Path) -> None:
    call = TwilioCall("MZ3")
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        staged(server, stt.url) as harness,
        harness.worker(),
        gateway(harness, tmp_path / "log") as ingest,
        dial(ingest.url, call) as socket,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(call.play_all, socket, speech(3))
        await harness.until("MZ3", TurnStart)
        await server.kill()
        await ingest.logged("Redis is not available")
        await server.restart()
        events = (await harness.until_ended("MZ3"))["MZ3"]
    check_order(events)
    assert words(events) == [*range(9)]


async def test_stopping_gateway_waits_for_its_call(harness: Harness, tmp_path: Path) -> None:
    call = TwilioCall("MZ4")
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with dial(ingest.url, call) as socket:
            await call.play(socket, speech(1))
            ingest.process.send_signal(signal.SIGTERM)
            await ingest.logged("stopping, open calls: 1")
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{ingest.url}/twilio", proxy=None)
            assert refused.value.response.status_code == 503
            await call.play(socket, speech(1, first=3))
            await socket.send(call.stop())
            await ingest.process.wait()
        assert ingest.process.returncode == 0
        events = (await harness.until_ended("MZ4"))["MZ4"]
    assert words(events) == [*range(6)]


async def test_second_signal_ends_gateway_at_once(
    harness: Harness, tmp_path: Path, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:producer:*")  # until it expires
    call = TwilioCall("MZ5")
    async with gateway(harness, tmp_path / "log") as ingest, dial(ingest.url, call) as socket:
        await call.play(socket, speech(1)[:1600])
        ingest.process.send_signal(signal.SIGTERM)
        await ingest.logged("stopping, open calls: 1")
        ingest.process.send_signal(signal.SIGTERM)
        assert await ingest.process.wait() == 0
        await socket.wait_closed()
        assert socket.close_code == 1001


async def test_drain_timeout_ends_the_session(harness: Harness, tmp_path: Path) -> None:
    call = TwilioCall("MZ6")
    async with harness.worker(), gateway(harness, tmp_path / "log", drain_s="0") as ingest:
        async with dial(ingest.url, call) as socket:
            await call.play(socket, speech(1))
            ingest.process.send_signal(signal.SIGTERM)
            assert await ingest.process.wait() == 0
            await socket.wait_closed()
        events = (await harness.until_ended("MZ6"))["MZ6"]
    assert words(events) == [0, 1, 2]


async def play_raw(socket: ClientConnection, sound: bytes) -> None:
    for frame in frames(sound, PCM16):
        await socket.send(frame)
        await anyio.sleep(0.02)


async def test_lost_socket_that_returns_continues(harness: Harness, tmp_path: Path) -> None:
    sound = speech(2, PCM16)
    half = len(sound) // 2
    async with harness.worker(), gateway(harness, tmp_path / "log", grace_s="60") as ingest:
        async with connect(raw_url(ingest, "call-1"), proxy=None) as socket:
            await play_raw(socket, sound[:half])
            socket.transport.abort()
        await ingest.logged("call call-1: socket lost, waiting 60 s for it to return")
        async with connect(raw_url(ingest, "call-1"), proxy=None) as socket:
            await play_raw(socket, sound[half:])
            await socket.send('{"end": true}')
            await socket.wait_closed()
            assert socket.close_code == 1000
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(6)]


async def test_lost_socket_ends_session_after_grace(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log", grace_s="0") as ingest:
        async with connect(raw_url(ingest, "call-2"), proxy=None) as socket:
            await play_raw(socket, speech(1, PCM16))
            socket.transport.abort()
        events = (await harness.until_ended("call-2"))["call-2"]
        await ingest.logged("call call-2: ended (lost)")
    assert words(events) == [0, 1, 2]
    ended = events[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.reason == "end"


async def test_raw_client_gets_its_events(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-3", events="1"), proxy=None) as socket:
            opened = json.loads(await socket.recv())
            assert opened == {"type": "ingest.opened", "sessions": ["call-3"]}
            await play_raw(socket, speech(1, PCM16))
            await socket.send('{"mark": {"key": "a"}}')
            await socket.send('{"end": true}')
            received = [json.loads(message) async for message in socket]
            assert socket.close_code == 1000
        events = (await harness.until_ended("call-3"))["call-3"]
    assert [event["seq"] for event in received] == [event.seq for event in events]
    assert received[-1]["type"] == "session.ended"
    assert words(events) == [0, 1, 2]
    assert {"key": "a"} in [event.get("mark") for event in received]


async def test_two_channels_become_two_sessions(harness: Harness, tmp_path: Path) -> None:
    left, right = speech(1, PCM16), speech(1, PCM16, first=50)
    both = b"".join(left[at : at + 2] + right[at : at + 2] for at in range(0, len(left), 2))
    seen = set()
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(
            raw_url(ingest, "call-4", channels="2", events="1"), proxy=None
        ) as socket:
            opened = json.loads(await socket.recv())
            assert opened["sessions"] == ["call-4-a", "call-4-b"]
            for at in range(0, len(both), 1280):
                await socket.send(both[at : at + 1280])
                await anyio.sleep(0.02)
            await socket.send('{"end": true}')
            async for message in socket:
                seen.add(json.loads(message)["session"])
        events = await harness.until_ended("call-4-a", "call-4-b")
    assert seen == {"call-4-a", "call-4-b"}
    assert words(events["call-4-a"]) == [0, 1, 2]
    assert words(events["call-4-b"]) == [50, 51, 52]
    assert {event.group for leg in events.values() for event in leg} == {"call-4"}


async def test_forced_end_closes_the_turn(harness: Harness, tmp_path: Path) -> None:
    sound = speech(1, PCM16, pause_ms=0)
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-5"), proxy=None) as socket:
            await play_raw(socket, sound)
            await socket.send('{"turn_end": true}')
            end = await harness.until("call-5", TurnEnd)
            assert end.reason == "forced"
            await play_raw(socket, speech(1, PCM16, first=3))
            await socket.send('{"end": true}')
        events = (await harness.until_ended("call-5"))["call-5"]
    check_order(events)
    assert words(events) == [*range(6)]


@pytest.mark.parametrize(
    ("message", "code"),
    [("{}", 1008), ("nonsense", 1008), ('{"mark": 5}', 1008), (b"x" * (2**20 + 1), 1009)],
)
async def test_bad_message_closes_the_socket(
    message: str | bytes, code: int, harness: Harness, tmp_path: Path
) -> None:
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        connect(raw_url(ingest, "call-6"), proxy=None) as socket,
    ):
        await socket.send(message)
        await socket.wait_closed()
        assert socket.close_code == code


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ({"session": "a b"}, "session"),
        ({"sample_rate": "7"}, "sample_rate"),
        ({"channels": "3"}, "`channels` must be 1 or 2"),
        ({"nonsense": "1"}, "no such parameter"),
    ],
)
async def test_bad_query_is_refused_with_reason(
    query: dict[str, str], what: str, harness: Harness, tmp_path: Path
) -> None:
    async with gateway(harness, tmp_path / "log") as ingest:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{ingest.url}/raw?{urlencode(query)}", proxy=None)
        assert refused.value.response.status_code == 400
        assert what in refused.value.response.body.decode()


async def test_call_of_ended_session_is_closed(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-8"), proxy=None) as socket:
            await play_raw(socket, speech(1, PCM16))
            await socket.send('{"end": true}')
        await harness.until_ended("call-8")
        for events in ("0", "1"):
            async with connect(raw_url(ingest, "call-8", events=events), proxy=None) as socket:
                await socket.send(speech(1, PCM16)[:3200])
                await socket.wait_closed()
            assert socket.close_code == 1008
            assert socket.close_reason == "session call-8 has ended; use a new id for each call"
            await ingest.logged("call call-8: ended (over)")


async def test_session_with_live_socket_is_refused(harness: Harness, tmp_path: Path) -> None:
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        connect(raw_url(ingest, "call-7"), proxy=None),
    ):
        with pytest.raises(InvalidStatus) as refused:
            await connect(raw_url(ingest, "call-7"), proxy=None)
        assert refused.value.response.status_code == 409


async def test_audiosocket_call_becomes_turns(harness: Harness, tmp_path: Path) -> None:
    call_id = uuid.uuid4()
    options = ("--audiosocket", "127.0.0.1:0")
    async with harness.worker(), gateway(harness, tmp_path / "log", *options) as ingest:
        await ingest.logged("AudioSocket on")
        async with await anyio.connect_tcp("127.0.0.1", ingest.audiosocket_port) as stream:
            await stream.send(_packet(0x01, call_id.bytes))
            for at, frame in enumerate(frames(speech(2, PCM16), PCM16)):
                await stream.send(_packet(0x12, frame))
                if at == 75:  # in the silence behind the first turn
                    await stream.send(_packet(0x03, b"7"))
                await anyio.sleep(0.02)
            await stream.send(_packet(0x00, b""))
        events = (await harness.until_ended(str(call_id)))[str(call_id)]
    check_order(events)
    assert words(events) == [*range(6)]
    (mark,) = [event for event in events if isinstance(event, SessionMark)]
    assert mark.mark == {"dtmf": "7"}


def _packet(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


async def test_caller_returns_to_another_gateway(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker():
        async with (
            gateway(harness, tmp_path / "first") as first,
            connect(raw_url(first, "call-8"), proxy=None) as socket,
        ):
            await play_raw(socket, speech(1, PCM16))
            await harness.until("call-8", TurnEnd)
            first.process.send_signal(signal.SIGKILL)
            await socket.wait_closed()
        async with gateway(harness, tmp_path / "second") as second:
            async with connect(raw_url(second, "call-8"), proxy=None) as socket:
                await play_raw(socket, speech(1, PCM16, first=3))
                await socket.send('{"end": true}')
            events = (await harness.until_ended("call-8"))["call-8"]
    check_order(events)
    assert words(events) == [*range(6)]


async def test_session_of_killed_gateway_idles_out(
    harness: Harness, tmp_path: Path, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:producer:*")  # until it expires
    async with harness.worker(park_s=1.0, session_idle_s=2.0):
        async with (
            gateway(harness, tmp_path / "log") as ingest,
            connect(raw_url(ingest, "call-9"), proxy=None) as socket,
        ):
            await play_raw(socket, speech(1, PCM16))
            await harness.until("call-9", TurnEnd)
            ingest.process.send_signal(signal.SIGKILL)
            await socket.wait_closed()
        events = (await harness.until_ended("call-9"))["call-9"]
    assert words(events) == [0, 1, 2]
    ended = events[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.reason == "idle"


async def test_gateway_starts_without_redis(harness: Harness, tmp_path: Path) -> None:
    away = "redis://127.0.0.1:1/0"
    async with gateway(harness, tmp_path / "log", redis_url=away) as ingest:
        await eventually(lambda: _status(ingest.port, "/readyz", 503), "an unready gateway")
        assert await _status(ingest.port, "/livez", 200)
        ingest.process.send_signal(signal.SIGTERM)
        assert await ingest.process.wait() == 0


async def _status(port: int, path: str, status: int) -> bool:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await stream.receive()).startswith(b"HTTP/1.1 %d " % status)
