"""Moves chunks and events between Redis and the provider, without any guarantee.

This is the floor of the load benchmark: what the work costs in Python with the fastest libraries.
It has no fence, replay, commit, validation, backpressure or second socket, and audio stays in
Redis. A session ends with its socket. An error reply or a lost connection of Redis, or a refused
socket, ends the process.

`tests.peers.pairs` runs it as `python -m tests.peers.bare_relay run`, in the environment of a
worker. It is ready when it has an entry in the hash of the workers.
"""

import asyncio
import gc
import os
import time
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlencode, urlsplit

import msgspec
import uvloop
from hiredis import Reader, pack_command
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from schemas import Encoding, Keys

POLL_S: Final = 0.015

_KEYS: Final = Keys()
_TURNS: Final = _KEYS.turns("0")
_CLOSE: Final = b'{"type":"close"}'
_HEADERS: Final = {"X-API-Key": "local", "Cartesia-Version": "2026-03-01"}
_TEXT: Final = WSMsgType.TEXT
_BINARY: Final = WSMsgType.BINARY

Entries = list[tuple[bytes, list[bytes]]]
"""Ids and fields of entries; the fields are names and values in turn."""


class Message(msgspec.Struct):
    """A message of the provider; the other members are not decoded."""

    type: str


_decode: Final = msgspec.json.Decoder(Message).decode


class RedisConnection(asyncio.Protocol):
    """Connection to Redis: one XREAD at a time over all streams, and appends.

    The commands of one iteration of the event loop are one write.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(notEnoughData=Ellipsis)
        self._streams: dict[bytes, Callable[[Entries], None]] = {}
        self._cursors: dict[bytes, bytes] = {}
        self._polled_at = 0.0
        self._unsent: list[bytes] = []
        self.lost: Final[asyncio.Future[None]] = self._loop.create_future()
        """Has the error that ended the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # that of uvloop has no base

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("Redis closed the connection"))

    def send(self, *command: bytes | str | int) -> None:
        """Send a command; only the reply to XREAD is used."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        # hiredis declares the command as a tuple of one part.
        self._unsent.append(pack_command(command))  # type: ignore[arg-type]

    def _flush(self) -> None:
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def read(self, stream: bytes, on_entries: Callable[[Entries], None]) -> None:
        """Read a stream from its beginning, from the next poll on."""
        self._streams[stream] = on_entries
        self._cursors[stream] = b"0-0"

    def forget(self, stream: bytes) -> None:
        """Stop to read a stream."""
        self._streams.pop(stream, None)
        self._cursors.pop(stream, None)

    def poll(self) -> None:
        """Read all streams; the reply causes the next poll."""
        self._polled_at = self._loop.time()
        self.send(b"XREAD", b"STREAMS", *self._cursors, *self._cursors.values())

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not Ellipsis:
            if reply is None or isinstance(reply, list):  # of XREAD
                self._loop.call_at(self._polled_at + POLL_S, self.poll)
                for stream, entries in reply or ():
                    if stream in self._cursors:  # not forgotten since the poll
                        self._cursors[stream] = entries[-1][0]
                        self._streams[stream](entries)
            elif isinstance(reply, Exception):
                self._fail(reply)

    def _fail(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)


class Session(WSListener):
    """One session and its socket."""

    def __init__(self, redis: RedisConnection, run: bytes, fields: dict[bytes, bytes]) -> None:
        self._redis = redis
        self._name = fields[b"session"].decode()
        self._stream = _KEYS.audio("0", self._name).encode()
        encoding, rate = Encoding(fields[b"encoding"].decode()), int(fields[b"sample_rate"])
        self._query = {"model": "ink-2", "encoding": encoding.value, "sample_rate": rate}
        self._bytes_per_s = encoding.width * rate
        # The members of all its events that do not change.
        self._members = b'"session":"%b","run":"%b","provider":"cartesia","connection":1' % (
            fields[b"session"],
            run,
        )
        self._audio_bytes = 0
        self._seq = 0
        self._turns = 0

    async def connect(self, url: str) -> None:
        """Connect to the provider; audio is read from then on."""
        await ws_connect(lambda: self, f"{url}?{urlencode(self._query)}", extra_headers=_HEADERS)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._redis.read(self._stream, self._on_entries)

    def _on_entries(self, entries: Entries) -> None:
        for _, fields in entries:
            if fields[0] == b"audio":
                self._audio_bytes += len(fields[1])
                self._transport.send(_BINARY, fields[1])
            else:
                self._redis.forget(self._stream)
                self._transport.send(_TEXT, _CLOSE)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == _TEXT:
            text = frame.get_payload_as_bytes()
            kind = _decode(text).type
            if kind.startswith("turn."):
                self._publish(kind, b'%b,"turn":%d,"reason":"model"' % (text[:-1], self._turns))
                self._turns += kind == "turn.end"
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        del transport
        self._redis.forget(self._stream)
        ended = b'{"type":"session.ended","request_id":"","reason":"end","turns":%d' % self._turns
        self._publish("session.ended", ended)

    def _publish(self, kind: str, members: bytes) -> None:
        """Append an event: an open JSON object, completed by what all events have."""
        self._seq += 1
        audio_ms = self._audio_bytes * 1_000 // self._bytes_per_s
        event = b'%b,%b,"seq":%d,"at":%.3f,"audio_ms":%d}' % (
            members,
            self._members,
            self._seq,
            time.time(),
            audio_ms,
        )
        self._redis.send(
            b"XADD", _TURNS, b"*", b"session", self._name, b"type", kind, b"event", event
        )


async def relay(redis_url: str, stt_url: str, name: str) -> None:
    """Relay every session that is announced, until the process is killed."""
    address = urlsplit(redis_url)
    _, redis = await asyncio.get_running_loop().create_connection(
        RedisConnection, address.hostname or "127.0.0.1", address.port or 6379
    )
    async with asyncio.TaskGroup() as connecting:

        def on_announced(entries: Entries) -> None:
            for run, fields in entries:
                session = Session(redis, run, dict(zip(fields[::2], fields[1::2], strict=True)))
                connecting.create_task(session.connect(stt_url))

        redis.read(_KEYS.sessions.encode(), on_announced)
        redis.send(b"HSET", _KEYS.workers, name, b"{}")
        redis.poll()
        await redis.lost


def main() -> None:
    """Run the relay with the settings of a worker."""
    gc.disable()  # nothing makes cycles per chunk or event
    names = ("TURNBUS_REDIS_URL", "TURNBUS_STT_URL", "TURNBUS_WORKER_ID")
    uvloop.run(relay(*(os.environ[name] for name in names)))


if __name__ == "__main__":
    main()
