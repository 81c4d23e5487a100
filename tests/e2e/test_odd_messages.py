"""Providers that break their protocol: the session goes on and announces discarded audio."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import anyio
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from schemas.turns import AudioGap, SessionEnded, SessionError, TurnEnd, TurnUpdate
from tests.support.harness import KEY, PCM16, Harness, check_order, words
from tests.support.polling import PATIENCE_S
from worker.core import connection_health
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import ScriptEngine, synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.session import session
from worker.stt.frames import MAX_MESSAGE_BYTES

MS = 32
"""Bytes of audio in one millisecond."""

Act = Callable[[ServerConnection], Awaitable[None]]
Line = tuple[int, str | bytes | Act]
"""A line that is sent, or an action, once this many milliseconds of audio arrived."""

POISON = b"\x11\x7f" * 160
"""Audio on which a provider fails."""


class Odd:
    """A provider that sends its lines by audio position and reacts to given audio."""

    def __init__(self, lines: Sequence[Line], poison: Act | None, max_bytes: int) -> None:
        self.url = ""
        self.connections = 0
        self.sizes: list[int] = []
        """Size of each audio message in bytes."""
        self.sound = b""
        """All audio received on the last socket."""
        self.lines = lines
        self._poison = poison
        self._max_bytes = max_bytes

    @classmethod
    @asynccontextmanager
    async def serve(
        cls, *lines: Line, poison: Act | None = None, max_bytes: int = 2**30
    ) -> "AsyncIterator[Odd]":
        """Listen, and answer each connection with the same lines."""
        provider = cls(lines, poison, max_bytes)
        async with serve(provider._answer, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            provider.url = f"ws://127.0.0.1:{port}/stt/turns/websocket"
            yield provider

    async def _answer(self, ws: ServerConnection) -> None:
        self.connections += 1
        self.sound = b""
        left = [*self.lines]
        try:
            await ws.send('{"type":"connected"}')
            async for message in ws:
                if isinstance(message, str):
                    for _, line in left:
                        await _do(ws, line)
                    await ws.close(1000)
                    return
                self.sizes.append(len(message))
                if len(message) > self._max_bytes:
                    await ws.send('{"type":"error","status_code":413,"message":"too large"}')
                    continue
                self.sound += message
                while left and left[0][0] * MS <= len(self.sound):
                    await _do(ws, left.pop(0)[1])
                if self._poison is not None and POISON in self.sound:
                    await self._poison(ws)
        except ConnectionClosed:
            pass  # the worker dropped it


async def _do(ws: ServerConnection, line: str | bytes | Act) -> None:
    if callable(line):
        await line(ws)
    else:
        await ws.send(line)


def _closes(code: int, reason: str = "") -> Act:
    return lambda ws: ws.close(code, reason)


async def _breaks_off(ws: ServerConnection) -> None:
    ws.transport.abort()


async def _breaks_the_protocol(ws: ServerConnection) -> None:
    ws.transport.write(b"\xc1\x00")  # a reserved bit
    await ws.wait_closed()


async def _sends_bad_text(ws: ServerConnection) -> None:
    ws.transport.write(b"\x81\x03\xff\xfe.")


def _message(kind: str, text: str | None = None) -> str:
    return json.dumps({"type": kind} | ({} if text is None else {"transcript": text}))


UNREADABLE: list[str | bytes | Act] = [
    "",
    "[]",
    "null",
    "5",
    "{",
    '{"type":5}',
    '{"transcript":"w7"}',
    "[" * 50_000,
    b"\x00\xff",
    b"",
    "x" * (MAX_MESSAGE_BYTES + 1),
    _sends_bad_text,
    r'{"type":"turn.update","transcript":"w1 \ud83d"}',
    '{"type":"turn.update","transcript":["w9"]}',
    '{"type":"turn.update","transcript":"w1 \ufffd w2","x":NaN}',
    '{"type":"error","status_code":{},"message":"what?"}',
]


async def test_unreadable_message_is_skipped(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[Line] = [
        (200, _message("turn.start")),
        (200, _message("turn.update", "w1")),
        *((300, line) for line in UNREADABLE),
        (600, r'{"type":"turn.end","transcript":"w1 \ufffd w2 \udc00"}'),
    ]
    async with Odd.serve(*lines) as provider, harness.worker(stt_url=provider.url) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_silence(1_200, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.provider_unreadable == len(UNREADABLE) + 1
    check_order(events)
    assert [event.transcript for event in events if isinstance(event, TurnUpdate)] == [
        "w1",
        "w1 \ufffd",
        "w1 \ufffd w2",
    ]
    ends = [event for event in events if isinstance(event, TurnEnd)]
    assert [(end.transcript, end.reason) for end in ends] == [("w1 \ufffd w2 \ufffd", "model")]
    assert provider.connections == 1
    logged = [each.getMessage() for each in caplog.records if "unreadable" in each.getMessage()]
    assert len(logged) == 2, "the first, and how many"
    assert str(len(UNREADABLE) + 1) in logged[1]
    assert not any("w1" in line or KEY in line for line in logged)


@pytest.mark.parametrize(
    "poison",
    [
        _breaks_the_protocol,
        _closes(1011, "internal error"),
        _closes(1000),
        _breaks_off,
        lambda ws: ws.send('{"type":"error","status_code":500}'),
    ],
    ids=["broken frame", "1011", "1000", "cut", "in-band 500"],
)
async def test_audio_on_which_a_provider_fails_is_discarded(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, poison: Act
) -> None:
    monkeypatch.setattr(connection_health, "MIN_LOSING_S", 0.0)
    lines: list[Line] = [
        (200, _message("turn.start")),
        (300, _message("turn.update", "w1")),
    ]
    async with (
        Odd.serve(*lines, poison=poison) as provider,
        harness.worker(stt_url=provider.url) as worker,
    ):
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_silence(600, PCM16) + POISON + synthesize_silence(200, PCM16),
            end=False,
        )
        gap = await harness.until("call-1", AudioGap)
        provider.lines = [(100, _message("turn.start")), (200, _message("turn.end", "w2"))]
        await harness.play("call-1", synthesize_silence(1_000, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.gaps["watchdog"] == 1
    check_order(events)
    assert words(events) == [1, 2]
    (first, _) = (event for event in events if isinstance(event, TurnEnd))
    assert (first.reason, first.seq) == ("watchdog", gap.seq - 1)
    assert 0 < gap.missing_ms < 2_000
    assert isinstance(events[-1], SessionEnded)


async def test_outage_behind_open_sockets_loses_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that accepts and closes connections has not rejected the audio."""
    monkeypatch.setattr(connection_health, "MIN_LOSING_S", 0.0)
    monkeypatch.setattr(session, "OUTAGE_EVENT_AFTER_S", 0.5)
    reason = f"try again, {KEY}"
    async with (
        Odd.serve((100, _closes(1013, reason))) as provider,
        harness.worker(stt_url=provider.url),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_silence(800, PCM16))
        error = await harness.until("call-1", SessionError)
        with anyio.fail_after(PATIENCE_S):
            while provider.connections < connection_health.MAX_LOSSES + 3:
                await anyio.sleep(0.05)
        provider.lines = [(100, _message("turn.start")), (700, _message("turn.end", "w1"))]
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert (error.code, error.status, error.fatal) == ("stt_unavailable", 1013, False)
    assert "1013" in error.message
    assert "try again, [key]" in error.message
    assert sum(isinstance(event, SessionError) for event in events) == 1, "once per outage"
    assert not any(isinstance(event, AudioGap) for event in events)
    assert words(events) == [1]


@pytest.mark.parametrize("audio", [PCM16, AudioFormat("pcm_f32le", 48_000)], ids=["16k", "48k"])
@pytest.mark.parametrize("chunk_bytes", [6_400, 19_999])
async def test_provider_with_a_message_limit_gets_small_messages(
    harness: Harness, audio: AudioFormat, chunk_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Both the session's audio and the filler silence are split."""
    caplog.set_level(logging.WARNING)
    settings = ServerSettings(port=0, max_message=1_024)
    async with (
        TurnsServer.serve(settings, ScriptEngine()) as server,
        harness.worker(stt_url=server.url) as worker,
    ):
        await harness.announce("call-1", audio)
        sound = synthesize_words(range(4), audio)
        for start in range(0, len(sound), chunk_bytes):
            await harness.append("call-1", audio=sound[start : start + chunk_bytes])
        end = await harness.until("call-1", TurnEnd)  # by filler
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
        limit = worker.context.frame_limit.max_bytes
    check_order(events)
    assert end.transcript == "w0 w1 w2 w3"
    assert words(events) == [0, 1, 2, 3]
    assert not any(isinstance(event, AudioGap | SessionError) for event in events)
    assert 512 <= limit <= 1_024
    assert "this worker sends at most" in caplog.text


async def test_message_rejected_in_band_for_its_size_is_resent(harness: Harness) -> None:
    lines: list[Line] = [(100, _message("turn.start")), (700, _message("turn.end", "w1"))]
    sound = bytes(range(256)) * 100
    async with (
        Odd.serve(*lines, max_bytes=2_000) as provider,
        harness.worker(stt_url=provider.url),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", sound, sizes=(6_400,))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    assert not any(isinstance(event, SessionError) for event in events)
    assert provider.sound.startswith(sound), "no audio is missing"
    assert max(provider.sizes) == 6_400
    assert provider.connections == 3


async def test_provider_that_rejects_every_size_blocks_no_session(harness: Harness) -> None:
    async with (
        Odd.serve((0, _closes(1009, "no"))) as provider,
        harness.worker(stt_url=provider.url),
    ):
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_silence(100, PCM16))
        gap = await harness.until("call-1", AudioGap)
        provider.lines = []
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert (gap.reason, gap.missing_ms) == ("watchdog", 100)


@pytest.mark.parametrize(
    ("how", "status", "message"), [("503", 503, "HTTP 503"), ("refuse", 0, "cannot connect")]
)
async def test_outage_event_contains_the_provider_error(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    how: Literal["503", "refuse"],
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(session, "OUTAGE_EVENT_AFTER_S", 0.5)
    async with (
        TurnsServer.serve(ServerSettings(port=0), ScriptEngine()) as server,
        harness.worker(stt_url=server.url),
    ):
        async with server.outage(how):
            await harness.announce("call-1")
            await harness.play(
                "call-1", synthesize_words([1], PCM16) + synthesize_silence(800, PCM16)
            )
            error = await harness.until("call-1", SessionError)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert (error.code, error.status) == ("stt_unavailable", status)
    assert message in error.message
    assert KEY not in error.message
    assert words(events) == [1]
