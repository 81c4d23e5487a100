"""The TCP port of AudioSocket: connections of Asterisk, one call each.

The wire has no authentication: only peers of allowed networks are accepted. It has no call data
either: `stt:ingest:UUID` may hold fields of the session entry. The hash is read once, before the
session is announced.

Nothing is ever sent. Asterisk drops a call whose packet does not fit into the socket's buffer, so
a connection is read all the time, whatever Redis does. The dialplan application ends a call after
2 s without packets in both directions. Silence would prevent that, but the caller would receive it.
"""

import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, IPv6Network, ip_address
from math import inf
from socket import IPPROTO_TCP, SO_KEEPALIVE, SO_RCVBUF, SOL_SOCKET
from typing import Any, Protocol, Self

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas import EntryError, Keys, SessionEntry, decode_session, encode_session
from worker.bus.client.connection import describe
from worker.ingest.protocols.audiosocket import AudioSocket
from worker.ingest.records import Audio, CallInput, Started
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
KEEPALIVE = (
    (SOL_SOCKET, SO_KEEPALIVE, 1),
    *(
        (IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)  # not on every system
    ),
)
"""Socket options that close the connection of a peer that vanished: nothing else would."""

MAX_HELD_BYTES = 1024 * 1024
"""Maximum size of what is held while the hash is read; the call goes on without it then."""

RECORD_BYTES = 128
"""Size of a record beside its audio."""

ACCEPT_RETRY_DELAY_S = 0.1

Network = IPv4Network | IPv6Network


class AudioSocketLimits(msgspec.Struct, frozen=True):
    """Which connections are accepted, and for how long they may wait."""

    networks: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    max_connections: int = 1_000
    uuid_timeout_s: float = 10.0
    fields_timeout_s: float = 2.0
    """Maximum time to read the hash of session fields."""


class OpenCall(Protocol):
    """What the port needs of `calls.Call`."""

    def feed(self, record: CallInput, /) -> None:
        """Take a record, without waiting."""

    def disconnected(self, *, clean: bool) -> None:
        """End the call; after the grace if its connection was lost."""


CallOpener = Callable[[Started], OpenCall | None]
"""Opens a call; None if it is refused."""


class AudioSocketPort:
    """One listening port and its connections."""

    def __init__(
        self, redis: Redis, keys: Keys, open_call: CallOpener, limits: AudioSocketLimits
    ) -> None:
        self.redis = redis
        self.keys = keys
        self.open_call = open_call
        self.limits = limits
        self.connections = 0
        """Open connections."""
        self.refused: Counter[str] = Counter()
        """Closed connections by reason: `address`, `full`, `no_uuid`, `protocol`, `call`."""
        self.internal_errors: Counter[str] = Counter()
        """Internal errors that ended a connection, by component."""
        self.port = 0
        self._supervisor = Supervisor(self.internal_errors)
        self._listeners: Sequence[SocketListener] = ()

    @classmethod
    @asynccontextmanager
    async def serve(
        cls,
        host: str,
        port: int,
        redis: Redis,
        keys: Keys,
        open_call: CallOpener,
        limits: AudioSocketLimits,
    ) -> AsyncIterator[Self]:
        """Listen during the block; at its end, connections are closed."""
        server = cls(redis, keys, open_call, limits)
        group = await anyio.create_tcp_listener(local_host=host, local_port=port)
        async with group, anyio.create_task_group() as tasks:
            server._listeners = [
                each for each in group.listeners if isinstance(each, SocketListener)
            ]
            for listener in server._listeners:
                raw = listener.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
                # Accepted sockets inherit these options.
                raw.setsockopt(SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                for level, option, value in KEEPALIVE:
                    raw.setsockopt(level, option, value)
                server.port = raw.getsockname()[1]
                tasks.start_soon(server._accept, listener, tasks)
            yield server
            tasks.cancel_scope.cancel()

    async def stop_accepting(self) -> None:
        """Take no new connection; those that are open go on."""
        for listener in self._listeners:
            await listener.aclose()

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except anyio.ClosedResourceError:
                return
            except OSError as error:  # no descriptor, or the peer is gone already
                log.warning("cannot accept an AudioSocket connection: %s", error)
                await anyio.sleep(ACCEPT_RETRY_DELAY_S)
                continue
            tasks.start_soon(self._serve, stream)

    async def _serve(self, stream: SocketStream) -> None:
        address = stream.extra(SocketAttribute.remote_address, None)  # noqa: S610 - not Django's
        async with stream:
            if address is None:  # the peer is gone already
                return
            peer = str(address[0])
            if not self._allows(peer):
                self.refuse("address", f"AudioSocket connection of {peer}: not an allowed address")
            elif self.connections >= self.limits.max_connections:
                self.refuse("full", f"AudioSocket connection of {peer}: too many are open")
            else:
                self.connections += 1
                try:
                    with self._supervisor.isolate("audiosocket"):
                        await _Connection(self, stream, peer).run()
                finally:
                    self.connections -= 1

    def _allows(self, peer: str) -> bool:
        address = ip_address(peer)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.limits.networks)

    def refuse(self, reason: str, line: str) -> None:
        """Count and log a connection that the port closes."""
        self.refused[reason] += 1
        log.warning("%s", line)


class _Connection:
    """One connection: bytes to records, held until the hash of session fields is read."""

    def __init__(self, port: AudioSocketPort, stream: SocketStream, peer: str) -> None:
        self._port = port
        self._stream = stream
        self._peer = peer
        self._parser = AudioSocket()
        self._fields: Mapping[bytes, bytes] | None = None
        self._held: list[CallInput] = []
        self._held_bytes = 0
        self._reading = anyio.CancelScope()
        self._lookup = anyio.CancelScope()
        self._call: OpenCall | None = None

    async def run(self) -> None:
        """Read until the connection or the call ends."""
        clean = False
        try:
            async with anyio.create_task_group() as tasks:
                clean = await self._read(tasks)
        finally:
            if self._call is not None:
                self._call.disconnected(clean=clean)

    async def _read(self, tasks: TaskGroup) -> bool:
        """Read to the end; return whether the peer ended the connection at a packet's end."""
        timeout_s = self._port.limits.uuid_timeout_s
        self._reading.deadline = anyio.current_time() + timeout_s
        with self._reading:
            try:
                while not self._parser.ended:
                    await self._read_once(tasks)
            except anyio.EndOfStream:
                return not self._parser.inside_packet
            except anyio.BrokenResourceError:
                return False
            if error := self._parser.error:
                self._port.refuse("protocol", f"{self._name}: {error}")
            return error is None
        if self._parser.session is None:
            self._port.refuse("no_uuid", f"{self._name}: no UUID within {timeout_s:g} s")
        return False

    async def _read_once(self, tasks: TaskGroup) -> None:
        records = self._parser.feed(await self._stream.receive(READ_BYTES))
        session = self._parser.session
        if session is not None and self._reading.deadline < inf:
            self._reading.deadline = inf
            tasks.start_soon(self._look_up, session)
        if self._fields is not None:
            self._forward(records)
            return
        self._held += records
        self._held_bytes += RECORD_BYTES * len(records)
        self._held_bytes += sum(len(each.audio) for each in records if isinstance(each, Audio))
        if self._held_bytes > MAX_HELD_BYTES:
            self._lookup.cancel()

    async def _look_up(self, session: str) -> None:
        """Read the hash of session fields, then pass on what came meanwhile."""
        key = self._port.keys.ingest(session)
        fields: Mapping[bytes, bytes] | None = None
        self._lookup.deadline = anyio.current_time() + self._port.limits.fields_timeout_s
        with self._lookup:
            try:
                found: Any = await self._port.redis.hgetall(key)  # bytes only
                fields = found
            except (RedisError, OSError) as error:
                log.warning("call %s: going on without %s: %s", session, key, describe(error))
                fields = {}
        if fields is None:
            log.warning("call %s: going on without %s: Redis is too slow", session, key)
        self._fields = fields or {}
        self._forward(self._held)
        self._held = []

    def _forward(self, records: Iterable[CallInput]) -> None:
        for record in records:
            if isinstance(record, Started):
                entry = with_fields(record.sessions[0], self._fields or {})
                self._call = self._port.open_call(Started((entry,)))
                if self._call is None:
                    self._port.refuse("call", f"{self._name}: refused")
                    self._reading.cancel()
                    return
            elif self._call is not None:
                self._call.feed(record)

    @property
    def _name(self) -> str:
        session = self._parser.session
        return f"call {session}" if session else f"AudioSocket connection of {self._peer}"


def with_fields(entry: SessionEntry, fields: Mapping[bytes, bytes]) -> SessionEntry:
    """Return an entry with more fields; without them if they are invalid."""
    try:
        merged = decode_session({**fields, **_encoded(entry)})
        # JSON that is written again may be longer than its limit.
        return decode_session(_encoded(merged))
    except EntryError as error:
        log.warning("call %s: going on without its fields in Redis: %s", entry.session, error)
        return entry


def _encoded(entry: SessionEntry) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in encode_session(entry).items()}
