"""The port of AudioSocket: real connections, allowed peers, limits, and fields from Redis."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas import Encoding, Keys, SessionEntry, TurnConfig
from schemas.audio import MAX_METADATA_BYTES
from tests.support.polling import eventually
from tests.unit.ingest.protocols.checks import check_records
from tests.unit.ingest.protocols.test_audiosocket_packets import (
    CALL,
    FRAME,
    OPENING,
    packet,
)
from worker.ingest import audiosocket
from worker.ingest.audiosocket import (
    AudioSocketLimits,
    AudioSocketPort,
    OpenCall,
    with_fields,
)
from worker.ingest.protocols.audiosocket import DTMF, ERROR, HANGUP
from worker.ingest.records import Audio, CallInput, Ended, Marked, Started

pytestmark = pytest.mark.anyio

AUDIO = packet(0x10, FRAME)
PATIENT = AudioSocketLimits(uuid_timeout_s=3_600, fields_timeout_s=3_600)


class Recorder:
    """The calls that a port opens, in place of `calls.Calls`."""

    def __init__(self) -> None:
        self.sessions: list[SessionEntry] = []
        self.records: list[CallInput] = []
        self.ends: list[bool] = []
        self.refuses = False
        self.error: Exception | None = None

    def open(self, started: Started) -> OpenCall | None:
        if self.refuses:
            return None
        self.sessions += started.sessions
        return self

    def feed(self, record: CallInput, /) -> None:
        if self.error is not None:
            raise self.error
        self.records.append(record)

    def disconnected(self, *, clean: bool) -> None:
        self.ends.append(clean)


class Hashes(Redis):
    """Only `hgetall`: waits until `answer` is set."""

    def __init__(self, fields: Mapping[bytes, bytes] | Exception | None = None) -> None:
        self.fields = fields or {}
        self.answer = anyio.Event()

    async def hgetall(self, name: Any) -> Any:
        await self.answer.wait()
        if isinstance(self.fields, Exception):
            raise self.fields
        return self.fields

    def __del__(self, *_: Any) -> None:
        """Close nothing: there is no connection."""


@pytest.fixture
def calls() -> Recorder:
    return Recorder()


@pytest.fixture
def hashes() -> Hashes:
    hashes = Hashes()
    hashes.answer.set()
    return hashes


Serve = Callable[..., AbstractAsyncContextManager[AudioSocketPort]]


@pytest.fixture
def serve(calls: Recorder, hashes: Hashes) -> Serve:
    @asynccontextmanager
    async def serving(
        limits: AudioSocketLimits = PATIENT, redis: Redis = hashes
    ) -> AsyncIterator[AudioSocketPort]:
        listening = AudioSocketPort.serve("127.0.0.1", 0, redis, Keys(), calls.open, limits)
        with anyio.fail_after(60):
            async with listening as port:
                yield port

    return serving


Dial = Callable[..., Awaitable[SocketStream]]


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Connect and send; all connections are closed after the test."""
    async with AsyncExitStack() as streams:

        async def connect(port: AudioSocketPort, *wire: bytes) -> SocketStream:
            stream = await anyio.connect_tcp("127.0.0.1", port.port)
            await streams.enter_async_context(stream)
            for piece in wire:
                await stream.send(piece)
            return stream

        yield connect


async def is_closed(stream: SocketStream) -> bool:
    try:
        return not await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True


@pytest.mark.parametrize("ending", [packet(HANGUP), packet(ERROR, b"\x01")])
async def test_call_is_opened_fed_and_ended(
    dial: Dial, calls: Recorder, serve: Serve, ending: bytes
) -> None:
    async with serve() as port:
        stream = await dial(port, OPENING + AUDIO, packet(DTMF, b"5")[:2], packet(DTMF, b"5")[2:])
        await stream.send(AUDIO + ending)
        assert await is_closed(stream)
        await eventually(lambda: calls.ends, "the end of the call")
    (session,) = calls.sessions
    assert (session.session, session.sample_rate) == (str(CALL), 8_000)
    assert calls.records == [Audio(FRAME), Marked({"dtmf": "5"}), Audio(FRAME), Ended()]
    assert calls.ends == [True]


async def test_hangup_without_packet_is_clean(dial: Dial, calls: Recorder, serve: Serve) -> None:
    async with serve() as port:
        await (await dial(port, OPENING + AUDIO)).aclose()
        assert await eventually(lambda: calls.ends, "the end of the call") == [True]


async def test_cut_packet_is_a_lost_connection(dial: Dial, calls: Recorder, serve: Serve) -> None:
    async with serve() as port:
        await (await dial(port, OPENING + AUDIO + AUDIO[:9])).aclose()
        assert await eventually(lambda: calls.ends, "the end of the call") == [False]


async def test_reset_is_a_lost_connection(dial: Dial, calls: Recorder, serve: Serve) -> None:
    async with serve() as port:
        stream = await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        assert await eventually(lambda: calls.ends, "the end of the call") == [False]


async def test_shutdown_loses_the_connection(dial: Dial, calls: Recorder, serve: Serve) -> None:
    async with serve() as port:
        stream = await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")
    assert calls.ends == [False]
    assert await is_closed(stream)


async def test_unusable_bytes_close_the_connection(
    dial: Dial, calls: Recorder, serve: Serve
) -> None:
    async with serve() as port:
        assert await is_closed(await dial(port, b"\x01\x00\x05short"))
        assert port.refused == {"protocol": 1}
        later = packet(0x12, FRAME)
        stream = await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")
        await stream.send(later)
        assert await is_closed(stream)
    assert calls.records == [Audio(FRAME)]
    assert calls.ends == [False]


async def test_audio_before_unusable_bytes_is_kept(
    dial: Dial, calls: Recorder, serve: Serve
) -> None:
    hashes = Hashes()
    async with serve(redis=hashes) as port:
        stream = await dial(port, OPENING + AUDIO * 3 + packet(0x12, FRAME))
        await eventually(lambda: port.refused == {"protocol": 1}, "the refusal")
        hashes.answer.set()
        assert await is_closed(stream)
    assert calls.records == [Audio(FRAME)] * 3
    assert calls.ends == [False]


async def test_vanished_peer_is_noticed(dial: Dial, serve: Serve) -> None:
    async with serve() as port:
        await dial(port, OPENING)
        listener = port._listeners[0].extra(SocketAttribute.raw_socket)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_peer_outside_networks_is_refused(dial: Dial, calls: Recorder, serve: Serve) -> None:
    limits = msgspec.structs.replace(PATIENT, networks=(ip_network("10.0.0.0/8"),))
    async with serve(limits) as port:
        assert await is_closed(await dial(port))
        assert port.refused == {"address": 1}
    assert calls.sessions == []


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), ("::1", False)],
)
def test_networks_decide(calls: Recorder, hashes: Hashes, peer: str, allowed: bool) -> None:
    limits = AudioSocketLimits(networks=(ip_network("10.0.0.0/8"),))
    assert AudioSocketPort(hashes, Keys(), calls.open, limits)._allows(peer) is allowed


async def test_connection_over_the_limit_is_refused(dial: Dial, serve: Serve) -> None:
    limits = msgspec.structs.replace(PATIENT, max_connections=1)
    async with serve(limits) as port:
        first = await dial(port)
        await eventually(lambda: port.connections, "a connection")
        assert await is_closed(await dial(port))
        assert port.refused == {"full": 1}
        await first.aclose()
        await eventually(lambda: port.connections == 0, "room")


async def test_connection_without_uuid_is_closed(dial: Dial, serve: Serve) -> None:
    limits = msgspec.structs.replace(PATIENT, uuid_timeout_s=0.05)
    async with serve(limits) as port:
        assert await is_closed(await dial(port, OPENING[:5]))
        assert port.refused == {"no_uuid": 1}


async def test_uuid_lifts_the_timeout(dial: Dial, calls: Recorder, serve: Serve) -> None:
    limits = msgspec.structs.replace(PATIENT, uuid_timeout_s=0.3)
    async with serve(limits) as port:
        stream = await dial(port, OPENING)
        await anyio.sleep(0.5)
        await stream.send(AUDIO)
        await eventually(lambda: calls.records, "audio")


async def test_refused_call_closes_the_connection(
    dial: Dial, calls: Recorder, serve: Serve
) -> None:
    calls.refuses = True
    async with serve() as port:
        assert await is_closed(await dial(port, OPENING + AUDIO))
        assert port.refused == {"call": 1}
    assert calls.ends == []


async def test_internal_error_ends_one_connection(
    dial: Dial, calls: Recorder, serve: Serve
) -> None:
    calls.error = ValueError("unexpected")
    async with serve() as port:
        assert await is_closed(await dial(port, OPENING + AUDIO))
        assert port.internal_errors == {"audiosocket": 1}
        calls.error = None
        await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio of another connection")


async def test_closed_port_keeps_its_connections(dial: Dial, calls: Recorder, serve: Serve) -> None:
    async with serve() as port:
        stream = await dial(port, OPENING)
        await eventually(lambda: port.connections, "a connection")
        await port.stop_accepting()
        with pytest.raises(OSError, match="connect"):
            await dial(port)
        await stream.send(AUDIO)
        await eventually(lambda: calls.records, "audio")


async def test_audio_waits_for_the_fields(dial: Dial, calls: Recorder, serve: Serve) -> None:
    hashes = Hashes({b"lane": b"eu", b"session": b"other", b"metadata": b'{"tenant":"acme"}'})
    async with serve(redis=hashes) as port:
        stream = await dial(port, OPENING + AUDIO * 3 + packet(HANGUP))
        await eventually(lambda: port.connections, "a connection")
        assert calls.sessions == []
        hashes.answer.set()
        await eventually(lambda: calls.ends, "the end of the call")
        await stream.aclose()
    (session,) = calls.sessions
    assert (session.session, session.lane) == (str(CALL), "eu")
    assert session.metadata == {"tenant": "acme"}
    assert calls.records == [Audio(FRAME)] * 3 + [Ended()]


async def test_slow_redis_does_not_delay_the_call(
    dial: Dial, calls: Recorder, serve: Serve
) -> None:
    limits = msgspec.structs.replace(PATIENT, fields_timeout_s=0.01)
    async with serve(limits, Hashes()) as port:
        await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")
    assert calls.sessions[0].lane == "0"


async def test_held_audio_is_bounded(
    dial: Dial, calls: Recorder, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audiosocket, "MAX_HELD_BYTES", 2_000)
    async with serve(redis=Hashes()) as port:
        await dial(port, OPENING + AUDIO * 10)
        await eventually(lambda: len(calls.records) == 10, "all audio")


async def test_redis_error_does_not_end_the_call(dial: Dial, calls: Recorder, serve: Serve) -> None:
    hashes = Hashes(RedisConnectionError("refused"))
    hashes.answer.set()
    async with serve(redis=hashes) as port:
        await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")


async def test_fields_come_from_redis(
    dial: Dial, calls: Recorder, redis: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("ingest:*")
    keys = Keys(bus_prefix)
    fields: Any = {"lane": "eu", "keyterms": '["Redis"]', "turn_end_threshold": "0.3"}
    await redis.hset(keys.ingest(str(CALL)), mapping=fields)
    serving = AudioSocketPort.serve("127.0.0.1", 0, redis, keys, calls.open, PATIENT)
    async with serving as port:
        await dial(port, OPENING + AUDIO)
        await eventually(lambda: calls.records, "audio")
    (session,) = calls.sessions
    assert (session.lane, session.keyterms) == ("eu", ("Redis",))
    assert session.config.turn_end_threshold == 0.3


LONGER = b'{"a":[' + b",".join([b"1e9"] * 1_000) + b"]}"


@pytest.mark.parametrize(
    "fields",
    [
        {b"lane": b"a/b"},
        {b"metadata": b"["},
        {b"metadata": LONGER},
        {b"lane": b"\xff"},
        {b"turn_end_threshold": b"high"},
    ],
)
def test_invalid_fields_are_left_out(
    fields: dict[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(LONGER) < MAX_METADATA_BYTES
    entry = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=8_000)
    assert with_fields(entry, fields) == entry
    assert "call s: going on without its fields" in caplog.text


@given(
    st.dictionaries(
        st.sampled_from([*SessionEntry.__struct_fields__, *TurnConfig.__struct_fields__]).map(
            str.encode
        ),
        st.binary(max_size=20) | st.sampled_from([b"{}", b"[]", b"0.4", b'{"a":1e9}', b'["x"]']),
    )
)
def test_any_fields_are_a_valid_entry(fields: dict[bytes, bytes]) -> None:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=8_000)
    merged = with_fields(entry, fields)
    check_records([Started((merged,))])
    assert (merged.session, merged.encoding, merged.sample_rate) == ("s", "pcm_s16le", 8_000)
