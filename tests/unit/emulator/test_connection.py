"""A server's life: stopping, failing engines, and clients that misbehave."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from schemas.pcm import Encoding
from tests.contract.wire import (
    GOOD,
    PHONE,
    closed,
    dial,
    next_event,
    rest_of,
    serving,
    until_open,
    upgrade_request,
)
from worker.errors import TurnbusError
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
    words_of,
)
from worker.local.emulator.settings import ServerSettings


class OddEngine:
    """An engine, and its only session, that calls a given function for each piece of audio."""

    name = "odd"

    def __init__(self, on_audio: Callable[[bytes, Callable[[EngineEvent], None]], None]) -> None:
        self._on_audio = on_audio
        self.closed = 0

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> "OddEngine":
        self._emit = emit
        return self

    async def feed(self, audio: bytes) -> None:
        self._on_audio(audio, self._emit)

    def configure(self, turn: TurnSettings) -> None:
        pass

    def report(self) -> None:
        pass

    async def end_turn(self) -> None:
        pass

    async def flush(self) -> None:
        self._on_audio(b"flush", self._emit)

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(("code", "reason"), [(1001, ""), (1012, "Service restart")])
async def test_stop_closes_sockets_and_leaves_no_task(code: int, reason: str) -> None:
    before = asyncio.all_tasks()
    late = ScriptEngine(ScriptOptions(latency_ms=60_000))
    async with serving(engine=late) as server:
        idle, talking, flushing = dial(server), dial(server), dial(server)
        async with idle as one, talking as two, flushing as three:
            await two.send(synthesize_words([1], PHONE))
            await three.send(synthesize_words([1], PHONE))
            await three.send('{"type":"close"}')
            for ws in (one, two, three):
                assert (await next_event(ws))["type"] == "connected"
            await server.stop(code, reason)
            for ws in (one, two, three):
                assert await rest_of(ws) == ([], code, reason)
        assert server.open_connections == 0
        assert [seen.close_code for seen in server.connections] == 3 * [code]
    assert asyncio.all_tasks() == before


async def test_leaving_block_stops_server() -> None:
    async with serving() as server:
        ws = await dial(server)
        await next_event(ws)
    assert await rest_of(ws) == ([], 1001, "")


async def test_address_in_use_is_reported() -> None:
    async with serving() as server:
        with pytest.raises(TurnbusError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            async with serving(ServerSettings(port=server.port)):
                pass


async def test_engine_cannot_violate_protocol() -> None:
    def speak(_: bytes, emit: Callable[[EngineEvent], None]) -> None:
        emit(EngineEvent("turn.start"))
        emit(EngineEvent("turn.update", "one two"))
        emit(EngineEvent("turn.end", "one"))

    engine = OddEngine(speak)
    async with serving(engine=engine) as server, dial(server) as ws:
        await ws.send(b"audio")
        events, code, _ = await rest_of(ws)
    assert [event["type"] for event in events] == ["connected", "turn.start", "turn.update"]
    assert code == 1011
    assert engine.closed == 1
    assert server.connections[0].close_code == 1011


@pytest.mark.parametrize("message", [b"audio", '{"type":"close"}'])
async def test_failing_engine_closes_only_its_socket_with_1011(message: bytes | str) -> None:
    def fail(audio: bytes, _: Callable[[EngineEvent], None]) -> None:
        if audio in {b"audio", b"flush"}:
            raise ValueError("no more")

    engine = OddEngine(fail)
    async with serving(engine=engine) as server, dial(server) as other, dial(server) as ws:
        await ws.send(message)
        assert (await rest_of(ws))[1:] == (1011, "")
        await other.send(b"sound")
        assert (await next_event(other))["type"] == "connected"
        assert (engine.closed, server.open_connections) == (1, 1)


async def test_late_reader_gets_every_event() -> None:
    text = "word " * 2_000

    def speak(_: bytes, emit: Callable[[EngineEvent], None]) -> None:
        emit(EngineEvent("turn.start"))
        emit(EngineEvent("turn.end", text))

    async with serving(engine=OddEngine(speak)) as server, dial(server) as ws:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_many, ws.send, 400)
            await anyio.sleep(0.3)  # 4 MB of events meet a client that does not read
            for _ in range(801):
                await next_event(ws)
        assert len(server.connections[0].transcripts) == 400


async def _send_many(send: Callable[[bytes], Awaitable[None]], count: int) -> None:
    for _ in range(count):
        await send(b"audio")


async def test_aborted_client_is_removed() -> None:
    engine = ScriptEngine(ScriptOptions(latency_ms=5))
    async with serving(engine=engine) as server:
        ws = await dial(server)
        await ws.send(synthesize_words([1, 2], PHONE) + synthesize_silence(600, PHONE))
        ws.transport.abort()
        await until_open(server, 0)
        await ws.wait_closed()
        async with dial(server) as other:
            await other.send(synthesize_words([3], PHONE))
            events, _, _ = await closed(other)
    assert events[-1]["transcript"] == "w3"
    assert server.connections[0].close_code == 1006


async def test_server_records_connection() -> None:
    async with serving() as server, dial(server, GOOD | {"keyterm": "Ink"}) as ws:
        await ws.send(synthesize_words([1], PHONE))
        await ws.send(synthesize_silence(600, PHONE) + synthesize_words([2], PHONE))
        await closed(ws)
        (seen,) = server.connections
        assert seen.params is not None
        assert (seen.params.audio, seen.params.keyterms) == (PHONE, ("Ink",))
        assert (seen.audio_messages, seen.audio_bytes) == (2, 16 * 1000)
        assert [words_of(text) for text in seen.transcripts] == [[1], [2]]
        assert seen.first_audio_at is not None
        assert seen.last_audio_at is not None
        assert seen.opened_at <= seen.first_audio_at <= seen.last_audio_at


async def test_message_above_limit_closes_with_1009() -> None:
    async with serving() as server:
        async with dial(server) as ws:
            audio = synthesize_words([1], PHONE)
            await ws.send(bytes(ServerSettings().max_message - len(audio)) + audio)
            events, code, _ = await closed(ws)
            assert (events[-1]["transcript"], code) == ("w1", 1000)
        async with dial(server) as ws:
            # The header alone of a masked binary frame: the server need not wait for the rest.
            ws.transport.write(
                b"\x82\xff" + (ServerSettings().max_message + 1).to_bytes(8, "big") + b"mask"
            )
            assert (await rest_of(ws))[1] == 1009


async def test_fragments_above_limit_close_with_1009() -> None:
    async with serving(ServerSettings(port=0, max_message=100_000)) as server:
        async with dial(server) as ws:
            await ws.send(synthesize_words(range(10), PHONE)[:1600] * 62)  # 99,200 bytes
            assert (await closed(ws))[1] == 1000
        async with dial(server) as ws:
            with suppress(ConnectionClosed):  # the close may arrive while it sends
                await ws.send(bytes(1_000) for _ in range(101))
            assert (await rest_of(ws))[1] == 1009


async def test_invalid_utf8_closes_with_1007() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(b"\xff\xfe", text=True)
        assert (await rest_of(ws))[1] == 1007


async def test_chunk_can_end_inside_sample() -> None:
    audio = synthesize_words(range(5), PHONE)
    async with serving() as server, dial(server) as ws:
        for start in range(0, len(audio), 777):
            await ws.send(audio[start : start + 777])
        await ws.send(b"")
        events, _, _ = await closed(ws)
    assert words_of(events[-1]["transcript"]) == [0, 1, 2, 3, 4]


odd_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.just("end_threshold"), inner, max_size=3)
    ),
    max_leaves=5,
)
odd_config = odd_json.map(lambda turn: json.dumps({"type": "config", "turn": turn}))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(Encoding)),
    st.lists(st.binary(max_size=4000) | st.text(max_size=40) | odd_config, max_size=8),
)
def test_server_survives_any_messages(encoding: str, sent: list[bytes | str]) -> None:
    async def play() -> None:
        async with serving() as server, dial(server, GOOD | {"encoding": encoding}) as ws:
            for message in sent:
                await ws.send(message)
            events, code, _ = await closed(ws)
            assert code == 1000
            assert {event.get("status_code") for event in events} <= {None, 400}
            received = sum(len(message) for message in sent if isinstance(message, bytes))
            assert server.connections[0].audio_bytes == received

    anyio.run(play)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.lists(st.binary(max_size=300) | st.just(b"\r\n\r\n"), max_size=5))
def test_server_survives_bytes_that_are_no_websocket(upgraded: bool, sent: list[bytes]) -> None:
    async def play() -> None:
        async with serving() as server:
            async with await anyio.connect_tcp("127.0.0.1", server.port) as tcp:
                with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                    if upgraded:
                        await tcp.send(upgrade_request())
                        await tcp.receive()
                    for part in sent:
                        await tcp.send(part)
            async with dial(server) as ws:
                await ws.send(synthesize_words([1], PHONE))
                events, code, _ = await closed(ws)
                assert (events[-1]["transcript"], code) == ("w1", 1000)

    anyio.run(play)
