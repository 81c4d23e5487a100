"""Connections to Redis, and riding out its outages.

The client's own retries are off: after a lost reply they would repeat a command that is not
idempotent. What is retried here is retried knowingly, as the same bytes.
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
from worker.plurals import counted
from worker.urls import join_host_port, parse_servers

log = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", Redis, PubSub)
READ_BLOCK_MS = 50
"""Longest blocking read: far below the socket timeout, so that a wait never looks like a fault."""

MAX_CONNECTIONS = 32
_SOCKET_TIMEOUT_S = 5.0
GREETING_S = 1.0
"""How long a server that closes connections may take to say why."""

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
    "max number of clients + cluster",  # the client knows the words of a single server
    "UNBLOCKED",  # a read that blocked while its master was told to be a replica
)


def connect(url: str) -> Redis:
    """Return a client for `url`; it connects on first use and never retries by itself.

    Of a cluster it is a `Cluster`; of sentinels, one that asks them for the master with each new
    connection.
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


def _client(url: str, **extra: Any) -> Redis:  # noqa: ANN401 - what the class of its connections has
    # Whoever finds every connection taken waits for one: a worker that is busy is no outage.
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        max_connections=MAX_CONNECTIONS,
    )
    transport = _TRANSPORTS.get(pool.connection_class, pool.connection_class)
    pool.connection_class = type(
        pool.connection_class.__name__,
        (_BusConnection, transport),
        {name: staticmethod(value) for name, value in extra.items()},
    )
    return Redis.from_pool(pool)


@asynccontextmanager
async def closing(connection: C) -> AsyncIterator[C]:
    """Close the connection, or all of a client's, for certain: cancelled or not."""
    try:
        yield connection
    finally:
        with anyio.CancelScope(shield=True):
            await connection.aclose()  # type: ignore[no-untyped-call]


class _BusConnection(AbstractConnection):
    """A connection for many small commands, that can be cut between two of them."""

    find_master: Callable[[], Awaitable[tuple[str, int]]] | None = None
    """Tells where to connect, if that is not always the same."""

    async def connect(self) -> None:
        """Connect, unless that is done."""
        if self.find_master is not None and not self.is_connected:
            self.host, self.port = await self.find_master()
        await super().connect()  # type: ignore[no-untyped-call]

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401 - as in the client
        """Write a command as bytes.

        The client's own way takes ten times as long, most of a poll that names a thousand keys.
        """
        name, *rest = args
        return [pack_command((*name.encode().split(), *rest))]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Write commands as bytes."""
        return [b"".join(part for command in commands for part in self.pack_command(*command))]

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            # asyncio's own transports drop what is written once they are cut; uvloop's raise.
            raise exceptions.ConnectionError(f"cannot write: {error}") from error
        except AttributeError as error:
            if error.obj is not None:
                raise
            # The client looks for its writer, then waits its turn, and another task has closed it.
            raise exceptions.ConnectionError("closed before it could be written to") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in the client
        """Read a reply."""
        try:
            return await super().read_response(*args, **options)
        except exceptions.ReadOnlyError:
            # It was the master once: by its name, or its sentinel, another is found.
            await self.disconnect()
            raise


class _TcpConnection(Connection):
    """A connection to whichever address of its host answers first."""

    _socket: socket.socket | None = None
    _reached = False

    async def connect(self) -> None:
        """Connect, unless that is done; say why the server closes the connection at once.

        Some say so and close before a command comes, and the reset loses what they said.
        """
        self._reached = False
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except exceptions.ConnectionError as error:
            if type(error) is not exceptions.ConnectionError or not self._reached:
                raise
            said = await self._greeting()
            if said.startswith("DENIED"):
                raise exceptions.ResponseError(said) from error
            if said:
                raise exceptions.ConnectionError(said) from error
            raise

    async def _greeting(self) -> str:
        """Return the error that a server answers a connection with; empty if there is none."""
        if isinstance(self, SSLConnection):
            return ""
        said = b""
        with (
            suppress(OSError),
            anyio.move_on_after(GREETING_S),
            await connect_tcp(self.host, self.port, GREETING_S) as greeted,
        ):
            said = await asyncio.get_running_loop().sock_recv(greeted, 1024)
        return said.decode("utf-8", "replace").removeprefix("-") if said[:1] == b"-" else ""

    async def _connect(self) -> None:
        timeout_s = self.socket_connect_timeout or _SOCKET_TIMEOUT_S
        try:
            self._socket = connected = await connect_tcp(self.host, self.port, timeout_s)
        except TimeoutError as error:  # the client would replace its text
            words = str(error) if error.errno is None else self._error_message(error)
            raise exceptions.ConnectionError(words) from error
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except BaseException:
            release_descriptor(connected)
            raise
        finally:
            self._socket = None  # the transport has it now
        if self._writer is not None and self._writer.transport.is_closing():
            release_descriptor(connected)
        self._reached = True

    def _connection_arguments(self) -> dict[str, Any]:
        """Return what `asyncio.open_connection` is called with."""
        arguments = dict(super()._connection_arguments())
        if "ssl" in arguments:
            arguments["server_hostname"] = self.host
        del arguments["host"], arguments["port"]
        return {**arguments, "sock": self._socket}


class _TlsConnection(_TcpConnection, SSLConnection):
    """A connection with TLS; those with the same options share what they trust and show.

    To read that takes 20 ms and 0.9 MiB, for it is every authority of the system, and a worker has
    up to `MAX_CONNECTIONS` to each master.
    """

    _contexts: ClassVar[dict[frozenset[tuple[str, Any]], RedisSSLContext]] = {}

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the client
        super().__init__(**options)
        shared = frozenset(each for each in options.items() if each[0].startswith("ssl_"))
        self.ssl_context = self._contexts.setdefault(shared, self.ssl_context)

    async def connect(self) -> None:
        """Connect, unless that is done; say what to do about a certificate that is refused."""
        try:
            await super().connect()
        except exceptions.TimeoutError as error:
            said = "no answer in time; a port without TLS gives none"
            raise exceptions.TimeoutError(f"{self._attempt}: {said}") from error
        except exceptions.ConnectionError as error:
            if not isinstance(fault := error.__context__, ssl.SSLError):
                raise
            self.ssl_context.context = None  # the files may have been renewed since
            said = tls.explain(fault, _TRUST)
            raise exceptions.ConnectionError(f"{self._attempt}: {said}") from error

    @property
    def _attempt(self) -> str:
        return f"TLS with {join_host_port(self.host, self.port)}"


_TRANSPORTS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
}
"""What connects in place of the client's own classes."""


def is_outage(error: BaseException) -> bool:
    """Say whether waiting may cure it: Redis away, loading, full, failing over, locked, unfit.

    A key that is denied is the fault of whoever named it, and no outage.
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
    """Say whether it denies a command, and so all of a worker's keys and sessions alike."""
    if isinstance(error, exceptions.NoPermissionError):
        return "permissions to run" in str(error)
    return isinstance(error, exceptions.ResponseError) and "ACL failure in script" in str(error)


OUTAGE_LOG_INTERVAL_S = 5.0
"""How often outages are told: where one master of a cluster is away, others answer in between."""


class RedisHealth:
    """Whether Redis answers, as far as the last command knew."""

    def __init__(self) -> None:
        self._logged_at = float("-inf")
        self._logging = False
        self.outage: str | None = None
        """What is wrong, None while Redis answers."""
        self.since = time.monotonic()
        self.unfit: str | None = None
        """What the server lacks, None if it is fit; it may answer all the same."""
        self._guessed = False  # by one command's error; a look at all of them says it better
        self._unfit_since = 0.0
        self._refused = 0

    @property
    def up(self) -> bool:
        """Redis answers."""
        return self.outage is None

    @property
    def available_for_s(self) -> float:
        """Seconds since Redis answers; 0 while it does not."""
        return time.monotonic() - self.since if self.up else 0.0

    def answered(self) -> None:
        """Record a reply."""
        if self.outage is not None:
            self.outage = None
            if self._logging:
                log.info("Redis answers again after %.1f s", time.monotonic() - self.since)
            self.since = time.monotonic()

    def failed(self, error: BaseException) -> None:
        """Record an outage; said once, however often it is met."""
        if fitness.lacks(error):
            self._refused += 1
            if self.unfit is None:
                self.lacks(describe(error))
                self._guessed = True
        if self.outage is None:
            self.since = time.monotonic()
            told_of = self.unfit is not None or self.since - self._logged_at < OUTAGE_LOG_INTERVAL_S
            self._logging = not told_of
            if self._logging:
                self._logged_at = self.since
                log.warning("Redis is not available, waiting for it: %s", describe(error))
        self.outage = describe(error)

    def lacks(self, what: str) -> None:
        """Record that the server is not fit to be worked with; said once, and again if it changes.

        It stays so until `fits`: some commands may be answered, and others not.
        """
        if self.unfit is None:
            self._unfit_since = time.monotonic()
        if self.unfit is None or (self.unfit != what and not self._guessed):
            log.error("Redis cannot be worked with, waiting until it can: %s", what)
        self.unfit = what
        self._guessed = False

    def fits(self) -> None:
        """Record that the server is found fit."""
        if self.unfit is not None:
            waited_s = time.monotonic() - self._unfit_since
            refused = counted(self._refused, "command")
            log.warning("Redis can be worked with after %.1f s; %s refused", waited_s, refused)
        self.unfit = None
        self._refused = 0


def describe(error: BaseException) -> str:
    """Return the error in words, and what to do; redis-py never puts a password into them."""
    said = f"{type(error).__name__}: {fitness.in_words(error)}".removesuffix(": ")
    advice = fitness.advice(error)
    return f"{said}; {advice}" if advice else said


async def unmoved(call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` gives; raise `BusUnavailable` if one server of a cluster refuses it.

    A client of a whole cluster follows such a reply. A client of one server can only be replaced,
    and must not wait.
    """
    try:
        return await call()
    except exceptions.MovedError as error:
        raise BusUnavailableError(describe(error)) from error


async def retry_while_unavailable(health: RedisHealth, call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` gives, repeating it as it is while Redis is out.

    `call` must be safe to repeat. Errors that waiting cannot cure are raised.
    """
    backoff = Backoff(first_s=0.05, ceiling_s=1.0)
    while True:
        try:
            reply = await call()
        except (exceptions.RedisError, OSError) as error:
            if not is_outage(error):
                raise
            health.failed(error)
        else:
            health.answered()
            return reply
        await anyio.sleep(backoff.next_s())
