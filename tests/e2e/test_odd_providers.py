"""Providers that send what the local server never sends and the API documents do not exclude."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from schemas.turns import AudioGap, SessionEnded, SessionError, TurnEnd, TurnUpdate
from tests.support.harness import PCM16, Harness, check_order, words
from worker.core import connection_health
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

Line = tuple[int, dict[str, Any]]
"""A line that is sent once this many milliseconds of audio arrived on a socket."""

MS = 32
"""Bytes of audio in one millisecond."""


class Odd:
    """A provider that sends its lines by audio position, whatever the audio contains."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.url = ""
        self.connections = 0
        self._lines = lines

    @classmethod
    @asynccontextmanager
    async def serve(cls, *lines: Line) -> "AsyncIterator[Odd]":
        """Listen, and answer each connection with the same lines."""
        provider = cls(lines)
        async with serve(provider._answer, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            provider.url = f"ws://127.0.0.1:{port}/stt/turns/websocket"
            yield provider

    async def _answer(self, ws: ServerConnection) -> None:
        self.connections += 1
        received = 0
        left = [*self._lines]
        try:
            await ws.send('{"type":"connected"}')
            async for message in ws:
                if isinstance(message, str) and '"config"' in message:
                    await ws.close(1008, "Invalid turn thresholds")
                    return
                if isinstance(message, str):
                    ws.protocol.send_close()  # without a code, as after an empty frame
                    ws.transport.writelines(ws.protocol.data_to_send())
                    continue
                received += len(message)
                while left and left[0][0] * MS <= received:
                    await ws.send(json.dumps(left.pop(0)[1]))
        except ConnectionClosed:
            pass  # the worker dropped it


@pytest.mark.parametrize("text", [{}, {"transcript": None}], ids=["left out", "null"])
async def test_missing_transcript_keeps_the_previous_text(
    harness: Harness, text: dict[str, None]
) -> None:
    """A server may omit fields that are empty or unchanged."""
    lines: list[Line] = [
        (200, {"type": "turn.start"}),
        (200, {"type": "turn.update", **text}),
        (300, {"type": "turn.update", "transcript": "w1"}),
        (400, {"type": "turn.eager_end", **text}),
        (500, {"type": "turn.resume"}),
        (600, {"type": "turn.update", **text}),
        (800, {"type": "turn.end", **text}),
        (1_000, {"type": "turn.start"}),
        (1_600, {"type": "turn.end", **text}),
    ]
    sound = (
        synthesize_words([1], PCM16)
        + synthesize_silence(600, PCM16)
        + synthesize_words([2], PCM16)
        + synthesize_silence(800, PCM16)
    )
    async with (
        Odd.serve(*lines) as provider,
        harness.worker(stt_url=provider.url, replay_speed=0.0),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", sound, pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    assert [event.turns for event in events if isinstance(event, SessionEnded)] == [2]
    assert [each.transcript for each in events if isinstance(each, TurnUpdate)] == ["w1"]
    assert provider.connections == 1


async def test_unknown_messages_do_not_keep_a_stuck_turn_open(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is a usage count for billing, sent with every second of audio."""
    monkeypatch.setattr(connection_health, "MARGIN_MS", 1_000.0)
    lines: list[Line] = [
        (200, {"type": "turn.start"}),
        (300, {"type": "turn.update", "transcript": "w1"}),
        *((ms, {"type": "usage"}) for ms in range(1_000, 60_000, 1_000)),
    ]
    async with Odd.serve(*lines) as provider, harness.worker(stt_url=provider.url) as worker:
        await harness.announce("call-1", turn_end_timeout_ms="640")
        await harness.append(
            "call-1", audio=synthesize_words([1], PCM16) + synthesize_silence(200, PCM16)
        )
        end = await harness.until("call-1", TurnEnd)
        gap = await harness.until("call-1", AudioGap)
        assert worker.context.stats.provider_unknown > 1
    assert (end.reason, end.transcript) == ("watchdog", "w1")
    assert (gap.reason, gap.seq) == ("watchdog", end.seq + 1), "the gap follows the turn before it"
    assert provider.connections == 2


async def test_settings_that_close_the_socket_keep_the_session(harness: Harness) -> None:
    """The connection opens with the rejected thresholds."""
    lines: list[Line] = [
        (200, {"type": "turn.start"}),
        (300, {"type": "turn.update", "transcript": "w1"}),
        (500, {"type": "turn.update", "transcript": "w1 w2"}),
        (900, {"type": "turn.end", "transcript": "w1 w2"}),
    ]
    async with Odd.serve(*lines) as provider, harness.worker(stt_url=provider.url):
        await harness.announce("call-1")
        await harness.play(
            "call-1", synthesize_words([1], PCM16) + synthesize_silence(200, PCM16), end=False
        )
        await harness.append("call-1", config='{"turn_end_threshold":0.5}')
        await harness.play("call-1", synthesize_words([2], PCM16) + synthesize_silence(600, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert not any(event.fatal for event in events if isinstance(event, SessionError))
    assert provider.connections == 2
