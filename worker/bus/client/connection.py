"""Connections to Redis, and retries during its outages.

redis-py's own retries are off: after a lost reply they would repeat a command that is not
idempotent. This module repeats only calls that are safe to repeat, as the same bytes.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, TypeVar

import anyio
from hiredis import pack_command
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    RedisSSLContext,
    SSLConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker import tls
from worker.bus import fitness
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.sentinel import SentinelResolver
from worker.core.provider_errors import Backoff
from worker.errors import BusUnavailableError
from worker.network import connect_tcp, release_descriptor
from worker.text import pluralize
from worker.urls import join_host_port, parse_servers

log = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", Redis, PubSub)
READ_BLOCK_MS = 50
"""Maximum duration of a blocking read, far below the socket timeout: a wait is not an outage."""

MAX_CONNECTIONS = 32
"""Maximum number of connections to one server."""

MAX_WIRES = 8
"""Number of these that are kept for wires (`worker.bus.client.wire`)."""

_SOCKET_TIMEOUT_S = 5.0
MAX_WRITE_BUFFER_BYTES = 64 * 1024
"""Maximum unsent bytes of a connection before a write waits."""

GREETING_TIMEOUT_S = 1.0
"""Timeout for the error text of a server that closes connections."""

_TRUST = "name your own authority's file: ?ssl_ca_certs=FILE in the Redis URL, or SSL_CERT_FILE"
_RETRYABLE_PREFIXES = (
    "OOM",
    "LOADING",
    "READONLY",
    "MISCONF",
    "BUSY ",
    "NOREPLICAS",
    "NOAUTH",
    "WRONGPASS",
    "max number of clients + cluster",  # redis-py recognizes only the text of a single server
    "UNBLOCKED",  # a blocking read was interrupted because its master became a replica
)


def connect(url: str) -> Redis:
    """Return a client for `url`; it connects on first use and never retries by itself.

    The client of a cluster is a `ClusterClient`. The client of sentinels asks them for the master
    with each new connection.
    """
    servers = parse_servers(url)
    if servers is None:
        return _client(url)
    if not servers.master_name:
        return ClusterClient(servers.addresses, lambda node: _client(servers.url(*node)))
    sentinels = SentinelResolver(
        servers.addresses,
        servers.master_name,
        lambda at, with_password: _client(servers.url(*at, with_password=with_password)),
    )
    return _client(servers.url("master", 0), find_master=sentinels.master)


def _client(url: str, **extra: Any) -> Redis:  # noqa: ANN401 - attributes of the connection class
    # A caller that finds every connection in use waits for one: a busy worker is not an outage.
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        max_connections=MAX_CONNECTIONS - MAX_WIRES,
    )
    transport = _TRANSPORTS.get(pool.connection_class, pool.connection_class)
    pool.connection_class = type(
        pool.connection_class.__name__,
        (BusConnection, transport),
        {name: staticmethod(value) for name, value in extra.items()},
    )
    return Redis.from_pool(pool)


@asynccontextmanager
async def closing(connection: C) -> AsyncIterator[C]:
    """Close the connection, or all connections of a client, even if cancelled."""
    try:
        yield connection
    finally:
        with anyio.CancelScope(shield=True):
            await connection.aclose()  # type: ignore[no-untyped-call]


class BusConnection(AbstractConnection):
    """A connection for many small commands, which may be closed between two of them."""

    find_master: Callable[[], Awaitable[tuple[str, int]]] | None = None
    """Returns the address to connect to; None if the address is fixed."""

    demotions: ClassVar[int] = 0
    """Number of times that a connection of this client found its server to be no master."""

    async def connect(self) -> None:
        """Connect, unless already connected."""
        if self.find_master is not None and not self.is_connected:
            self.host, self.port = await self.find_master()
        await super().connect()  # type: ignore[no-untyped-call]

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401 - as in the client
        """Encode a command.

        redis-py's encoder takes ten times as long: most of the time of a poll of a thousand keys.
        """
        name, *rest = args
        return [pack_command((*name.encode().split(), *rest))]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Encode commands."""
        return [b"".join(part for command in commands for part in self.pack_command(*command))]

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Write a command. Waits only if the server reads more slowly than the worker writes.

        redis-py starts a task for each write, to limit its time: half of the time of a write.
        """
        try:
            writer = self._writer
            if writer is not None and isinstance(command, list):
                writer.writelines(command)
                if writer.transport.get_write_buffer_size() <= MAX_WRITE_BUFFER_BYTES:
                    return
                command = b""
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            # A closed transport of asyncio drops the data; a closed transport of uvloop raises.
            raise exceptions.ConnectionError(f"cannot write: {error}") from error
        except AttributeError as error:
            if error.obj is not None:
                raise
            # redis-py checks its writer, then waits; another task closes the connection meanwhile.
            raise exceptions.ConnectionError("closed before the command was written") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in the client
        """Read a reply."""
        try:
            return await super().read_response(*args, **options)
        except exceptions.ReadOnlyError:
            # The server is no longer the master: reconnecting resolves the new one.
            self.demoted()
            await self.disconnect()
            raise

    def demoted(self) -> None:
        """Record that the server is no longer the master.

        It still answers reads, so connections that only read must learn it from others.
        """
        type(self).demotions += 1

    @property
    def address(self) -> str:
        """Address of the server, as redis-py's errors name it."""
        return self._host_error()

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.WriteTransport:
        """Pass what the server sends to `protocol` from now on; return the transport."""
        if self._writer is None or self._reader is None or self._reader.at_eof():
            raise exceptions.ConnectionError("closed before its first command")
        transport = self._writer.transport
        transport.set_protocol(protocol)
        return transport

    def abort(self) -> None:
        """Close the connection at once, without what is not sent yet."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._close()  # type: ignore[no-untyped-call]


class _TcpConnection(Connection):
    """A connection to the address of a host that answers first."""

    _socket: socket.socket | None = None
    _reached = False

    async def connect(self) -> None:
        """Connect, unless already connected; report why the server closes the connection at once.

        Some servers send an error and close before a command arrives; the reset loses the error.
        """
        self._reached = False
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except exceptions.ConnectionError as error:
            if type(error) is not exceptions.ConnectionError or not self._reached:
                raise
            reason = await self._greeting()
            if reason.startswith("DENIED"):
                raise exceptions.ResponseError(reason) from error
            if reason:
                raise exceptions.ConnectionError(reason) from error
            raise

    async def _greeting(self) -> str:
        """Return the error that a server sends to a new connection; empty if there is none."""
        if isinstance(self, SSLConnection):
            return ""
        received = b""
        with (
            suppress(OSError),
            anyio.move_on_after(GREETING_TIMEOUT_S),
            await connect_tcp(self.host, self.port, GREETING_TIMEOUT_S) as greeted,
        ):
            received = await asyncio.get_running_loop().sock_recv(greeted, 1024)
        text = received.decode("utf-8", "replace")
        return text.removeprefix("-") if received[:1] == b"-" else ""

    async def _connect(self) -> None:
        timeout_s = self.socket_connect_timeout or _SOCKET_TIMEOUT_S
        try:
            self._socket = connected = await connect_tcp(self.host, self.port, timeout_s)
        except TimeoutError as error:  # redis-py would replace its text
            text = str(error) if error.errno is None else self._error_message(error)
            raise exceptions.ConnectionError(text) from error
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except BaseException:
            release_descriptor(connected)
            raise
        finally:
            self._socket = None  # the transport owns it now
        if self._writer is not None and self._writer.transport.is_closing():
            release_descriptor(connected)
        self._reached = True

    def _connection_arguments(self) -> dict[str, Any]:
        """Return the arguments of `asyncio.open_connection`."""
        arguments = dict(super()._connection_arguments())
        if "ssl" in arguments:
            arguments["server_hostname"] = self.host
        del arguments["host"], arguments["port"]
        return {**arguments, "sock": self._socket}


class _TlsConnection(_TcpConnection, SSLConnection):
    """A connection with TLS; connections with the same options share an SSL context.

    Loading a context takes 20 ms and 0.9 MiB, because it holds every authority of the system. A
    worker has up to `MAX_CONNECTIONS` connections to each master.
    """

    _contexts: ClassVar[dict[frozenset[tuple[str, Any]], RedisSSLContext]] = {}

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the client
        super().__init__(**options)
        shared = frozenset(each for each in options.items() if each[0].startswith("ssl_"))
        self.ssl_context = self._contexts.setdefault(shared, self.ssl_context)

    async def connect(self) -> None:
        """Connect, unless already connected; give advice about a rejected certificate."""
        try:
            await super().connect()
        except exceptions.TimeoutError as error:
            reason = "no answer in time; a port without TLS gives none"
            raise exceptions.TimeoutError(f"{self._attempt}: {reason}") from error
        except exceptions.ConnectionError as error:
            if not isinstance(cause := error.__context__, ssl.SSLError):
                raise
            self.ssl_context.context = None  # the files may have been renewed since
            reason = tls.explain(cause, _TRUST)
            raise exceptions.ConnectionError(f"{self._attempt}: {reason}") from error

    @property
    def _attempt(self) -> str:
        return f"TLS with {join_host_port(self.host, self.port)}"


_TRANSPORTS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
}
"""Replacements for redis-py's connection classes."""


def is_outage(error: BaseException) -> bool:
    """Return whether waiting may help: Redis is down, loading, full, failing over, locked or unfit.

    A denied key is an input error, not an outage.
    """
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return True
    kinds = (
        exceptions.BusyLoadingError,
        exceptions.ReadOnlyError,
        exceptions.OutOfMemoryError,
        exceptions.AuthenticationError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
        exceptions.AskError,  # MOVED is one too
    )
    if isinstance(error, kinds) or denies_command(error) or fitness.lacks(error):
        return True
    return isinstance(error, exceptions.ResponseError) and str(error).startswith(
        _RETRYABLE_PREFIXES
    )


def denies_command(error: BaseException) -> bool:
    """Return whether the error denies a command, which affects all keys and sessions alike."""
    if isinstance(error, exceptions.NoPermissionError):
        return "permissions to run" in str(error)
    return isinstance(error, exceptions.ResponseError) and "ACL failure in script" in str(error)


OUTAGE_LOG_INTERVAL_S = 5.0
"""Minimum interval between logged outages: other masters of a cluster answer in between."""


class RedisHealth:
    """Whether Redis answered the last command."""

    def __init__(self) -> None:
        self._logged_at = float("-inf")
        self._logging = False
        self.outage: str | None = None
        """Error of the current outage; None while Redis answers."""
        self.since = time.monotonic()
        """Monotonic time of the last change of `up`."""
        self.unfit: str | None = None
        """What the server lacks; None if it is fit. An unfit server may answer some commands."""
        self._guessed = False  # from one command's error; a full check gives a better text
        self._unfit_since = 0.0
        self._rejected = 0

    @property
    def up(self) -> bool:
        """Whether Redis answers."""
        return self.outage is None

    @property
    def available_for_s(self) -> float:
        """Seconds for which Redis has answered; 0 during an outage."""
        return time.monotonic() - self.since if self.up else 0.0

    def answered(self) -> None:
        """Record a reply."""
        if self.outage is not None:
            self.outage = None
            if self._logging:
                log.info("Redis answers again after %.1f s", time.monotonic() - self.since)
            self.since = time.monotonic()

    def failed(self, error: BaseException) -> None:
        """Record an outage. It is logged once, however many commands fail."""
        if fitness.lacks(error):
            self._rejected += 1
            if self.unfit is None:
                self.lacks(describe(error))
                self._guessed = True
        if self.outage is None:
            self.since = time.monotonic()
            recent = self.since - self._logged_at < OUTAGE_LOG_INTERVAL_S
            self._logging = self.unfit is None and not recent
            if self._logging:
                self._logged_at = self.since
                log.warning("Redis is not available, waiting for it: %s", describe(error))
        self.outage = describe(error)

    def lacks(self, what: str) -> None:
        """Record that the server is unfit, and log each change of the reason.

        The server stays unfit until `fits` is called, even if it answers some commands.
        """
        if self.unfit is None:
            self._unfit_since = time.monotonic()
        if self.unfit is None or (self.unfit != what and not self._guessed):
            log.error("Redis is not usable, waiting until it is: %s", what)
        self.unfit = what
        self._guessed = False

    def fits(self) -> None:
        """Record that the server is fit."""
        if self.unfit is not None:
            waited_s = time.monotonic() - self._unfit_since
            rejected = pluralize(self._rejected, "command")
            log.warning("Redis is usable again after %.1f s (%s rejected)", waited_s, rejected)
        self.unfit = None
        self._rejected = 0

    async def retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `call`, and repeat the call during outages of Redis.

        `call` must be safe to repeat. Errors that are not outages are raised.
        """
        backoff = Backoff(first_s=0.05, ceiling_s=1.0)
        while True:
            try:
                reply = await call()
            except (exceptions.RedisError, OSError) as error:
                if not is_outage(error):
                    raise
                self.failed(error)
            else:
                self.answered()
                return reply
            await anyio.sleep(backoff.next_s())


def describe(error: BaseException) -> str:
    """Return the error's text and advice. redis-py never includes a password in the text."""
    text = f"{type(error).__name__}: {fitness.in_words(error)}".removesuffix(": ")
    advice = fitness.advice(error)
    return f"{text}; {advice}" if advice else text


async def unmoved(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `call`; raise `BusUnavailableError` if a cluster node redirects it.

    A cluster client follows such a reply. A client of one server can only be replaced, and must
    not wait.
    """
    try:
        return await call()
    except exceptions.MovedError as error:
        raise BusUnavailableError(describe(error)) from error
