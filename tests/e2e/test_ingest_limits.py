"""A gateway that is full, stopping, or asked for something else; and sockets that return."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from schemas.turns import TurnEnd
from tests.support.gateway import (
    GatewayProcess,
    TwilioCall,
    dial,
    frames,
    gateway,
    raw_url,
    speech,
)
from tests.support.harness import PCM16, Harness, words


async def ask(ingest: GatewayProcess, target: str) -> tuple[int, str]:
    """Return the status and the body of a GET."""
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", ingest.port) as stream:
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{ingest.port}\r\n\r\n"
        await stream.send(head.encode())
        async for part in stream:
            received += part
    head, _, body = received.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


async def play(socket: ClientConnection, sound: bytes) -> None:
    for frame in frames(sound, PCM16):
        await socket.send(frame)
        await anyio.sleep(0.02)


async def test_full_gateway_is_unready_and_refuses(harness: Harness, tmp_path: Path) -> None:
    async with gateway(harness, tmp_path / "log", max_calls="1") as ingest:
        assert (await ask(ingest, "/readyz"))[0] == 200
        async with connect(raw_url(ingest, "call-1"), proxy=None):
            status, body = await ask(ingest, "/readyz")
            assert status == 503
            assert json.loads(body) == {
                "ready": False,
                "reasons": ["maximum of calls reached"],
                "calls": 1,
                "capacity": 1,
            }
            for url in (raw_url(ingest, "call-2"), f"{ingest.url}/twilio"):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url, proxy=None)
                assert refused.value.response.status_code == 503
            _, metrics = await ask(ingest, "/metrics")
            assert 'turnbus_ingest_refused_total{turnbus_ingest_status="503"} 2.0' in metrics
            assert "turnbus_ingest_ready 0.0" in metrics


async def test_stopping_gateway_is_unready(harness: Harness, tmp_path: Path) -> None:
    async with gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-1"), proxy=None):
            ingest.process.send_signal(signal.SIGTERM)
            await ingest.logged("stopping")
            status, body = await ask(ingest, "/readyz")
            assert (status, json.loads(body)["reasons"]) == (503, ["shutting down"])
            assert (await ask(ingest, "/livez"))[0] == 200
        assert await ingest.process.wait() == 0


async def test_stream_id_in_use_closes_the_second_socket(
    harness: Harness, tmp_path: Path, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:producer:*")  # until it expires
    call = TwilioCall("MZ1")
    async with gateway(harness, tmp_path / "log") as ingest, dial(ingest.url, call) as first:
        await first.send(call.media(b"\xff" * 160))
        async with dial(ingest.url, call) as second:
            await second.wait_closed()
            assert second.close_code == 1008
            assert "live" in str(second.close_reason)
        await first.send(call.stop())


async def test_unusable_audiosocket_connection_is_counted(harness: Harness, tmp_path: Path) -> None:
    options = ("--audiosocket", "127.0.0.1:0")
    async with gateway(harness, tmp_path / "log", *options) as ingest:
        await ingest.logged("AudioSocket on")
        async with await anyio.connect_tcp("127.0.0.1", ingest.audiosocket_port) as stream:
            await stream.send(b"\x10\x00\x02ab")  # audio before the UUID
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        _, metrics = await ask(ingest, "/metrics")
        assert 'turnbus_ingest_refused_total{turnbus_ingest_status="400"} 1.0' in metrics
        assert "turnbus_ingest_faults_total 0.0" in metrics


async def test_other_requests_get_an_answer(harness: Harness, tmp_path: Path) -> None:
    async with gateway(harness, tmp_path / "log") as ingest:
        assert (await ask(ingest, "/nowhere"))[0] == 404
        assert (await ask(ingest, "/"))[0] == 404  # without --console
        assert (await ask(ingest, "/raw?session=call-1"))[0] == 426
        assert (await ask(ingest, "/twilio"))[0] == 426
        async with connect(raw_url(ingest, "call-1"), proxy=None):
            pass  # the plain request left no call


async def test_console_is_served_on_loopback(harness: Harness, tmp_path: Path) -> None:
    async with gateway(harness, tmp_path / "log", "--console") as ingest:
        status, body = await ask(ingest, "/")
        assert status == 200
        assert "<title>turnbus console</title>" in body
        assert (await ask(ingest, "/console.js"))[0] == 200
        assert (await ask(ingest, "/../settings.py"))[0] == 404
        assert (await ask(ingest, "/control"))[0] == 404


async def test_returned_client_gets_each_event_once(harness: Harness, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    async with harness.worker(), gateway(harness, tmp_path / "log", grace_s="60") as ingest:
        url = raw_url(ingest, "call-1", events="1")
        async with connect(url, proxy=None) as socket:
            await socket.recv()
            await play(socket, speech(1, PCM16, pause_ms=2_000))
            while not seen or seen[-1]["type"] != "turn.end":
                seen.append(json.loads(await socket.recv()))
            socket.transport.abort()
        await ingest.logged("socket lost, waiting 60 s")
        async with connect(url, proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "ingest.opened"
            await play(socket, speech(1, PCM16, first=3))
            await socket.send('{"end": true}')
            seen += [json.loads(message) async for message in socket]
            assert socket.close_code == 1000
        events = (await harness.until_ended("call-1"))["call-1"]
    assert [each["seq"] for each in seen] == [event.seq for event in events]
    assert words(events) == [*range(6)]


async def test_stopping_gateway_sends_last_events(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-1", events="1"), proxy=None) as socket:
            await play(socket, speech(1, PCM16, pause_ms=0))
            ingest.process.send_signal(signal.SIGTERM)
            await ingest.logged("stopping")
            await socket.send('{"end": true}')
            seen = [json.loads(message) async for message in socket]
            assert socket.close_code == 1000
        assert seen[-1]["type"] == "session.ended"
        assert await ingest.process.wait() == 0


async def test_viewer_gets_events_until_the_end(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(raw_url(ingest, "call-1"), proxy=None) as socket:
            await play(socket, speech(1, PCM16))
            await harness.until("call-1", TurnEnd)
            await socket.send('{"end": true}')
        status, body = await ask(ingest, "/events?session=call-1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert status == 200
    datas = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    assert [json.loads(data)["seq"] for data in datas] == [event.seq for event in events]


def asterisk(sound: bytes) -> Sequence[str | bytes]:
    """Return the messages of a call of Asterisk's chan_websocket, in its JSON form."""
    start = {
        "event": "MEDIA_START",
        "connection_id": "c1",
        "channel": "PJSIP/100",
        "channel_id": "1700000000.1",
        "format": "slin16",
        "optimal_frame_size": 640,
        "ptime": 20,
    }
    return [json.dumps(start), *frames(sound, PCM16)]


async def test_asterisk_call_becomes_turns(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        url = f"{ingest.url}/asterisk?session=call-1"
        async with connect(url, proxy=None, subprotocols=["media"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "media"
            for message in asterisk(speech(1, PCM16)):
                await socket.send(message)
                await anyio.sleep(0.02)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [0, 1, 2]


async def test_freeswitch_call_becomes_turns(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker(), gateway(harness, tmp_path / "log") as ingest:
        async with connect(
            f"{ingest.url}/freeswitch?session=call-1&sample_rate=16000", proxy=None
        ) as socket:
            await play(socket, speech(1, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [0, 1, 2]
