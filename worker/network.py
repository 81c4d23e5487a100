"""Outgoing TCP connections to the address of a host that answers first (RFC 8305).

A host name often has an IPv6 and an IPv4 address, and one of them may drop every packet. asyncio
has an option for that; uvloop and redis-py do not.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
from aiohappyeyeballs import AddrInfoType, start_connection

from worker.urls import join_host_port

ATTEMPT_DELAY_S = 0.25
"""Delay before the next address is tried in parallel, from RFC 8305."""

SHORTAGE_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""Errors caused by this machine: no descriptor, no memory, no local port, no thread."""

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
SocketFactory = Callable[[AddrInfoType], socket.socket]


def new_socket(address: AddrInfoType) -> socket.socket:
    """Return a new socket for an address's family."""
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


async def connect_tcp(
    host: str, port: int, timeout_s: float, factory: SocketFactory = new_socket
) -> socket.socket:
    """Return a non-blocking socket that is connected to a host.

    `timeout_s` covers the name lookup and all addresses. Raises `TimeoutError`, which names the
    addresses, and `OSError`. Its `errno` is in `SHORTAGE_ERRNOS` if this machine is the cause.
    """
    addresses: Sequence[AddrInfoType] = ()
    shortages: list[OSError] = []

    def make(address: AddrInfoType) -> socket.socket:
        try:
            return factory(address)
        except OSError as error:
            if error.errno in SHORTAGE_ERRNOS:
                shortages.append(error)
            raise

    try:
        with anyio.fail_after(timeout_s):
            addresses = await _resolve(host, port)
            return await start_connection(
                addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S, socket_factory=make
            )
    except TimeoutError as error:
        if error.errno is not None:  # raised by the system after its retransmissions
            raise
        if shortages:
            raise shortages[0] from None
        raise TimeoutError(_no_answer(host, port, addresses, timeout_s)) from None
    except (OSError, RuntimeError) as error:
        if shortages:  # an address that was not tried might have answered
            raise shortages[0] from None
        if isinstance(error, OSError):
            raise
        raise OSError(str(error)) from error


async def open_transport(
    factory: Callable[[], _P],
    connected: socket.socket,
    context: ssl.SSLContext | None,
    host: str,
) -> tuple[asyncio.Transport, _P]:
    """Return a transport and its protocol on a connected socket, with TLS if there is a context.

    Raises `OSError`. The transport owns the socket's descriptor from here on.
    """
    try:
        transport, protocol = await asyncio.get_running_loop().create_connection(
            factory, sock=connected, ssl=context, server_hostname=host if context else None
        )
    except BaseException:
        release_descriptor(connected)
        raise
    if transport.is_closing():
        release_descriptor(connected)
    return transport, protocol


def release_descriptor(connected: socket.socket) -> None:
    """Detach a socket object from its descriptor, which a closing uvloop transport closes.

    If the peer resets the connection before the transport is returned, uvloop leaves the number
    in the object as well. The object would close it again, when the number may belong to another
    connection; libuv then aborts the process. asyncio's transports close the object instead.
    """
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        connected.detach()


async def _resolve(host: str, port: int) -> Sequence[AddrInfoType]:
    """Look up a host name. An address needs no lookup and no thread."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    loop = asyncio.get_running_loop()
    try:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        socket.socket().close()  # raises if the lookup failed for lack of a descriptor
        raise socket.gaierror(error.errno, f"{host}: {error.strerror}") from None
    except RuntimeError as error:  # the pool of threads cannot grow
        raise OSError(errno.EAGAIN, f"no thread to look up {host}: {error}") from error


def _no_answer(host: str, port: int, addresses: Sequence[AddrInfoType], timeout_s: float) -> str:
    where = join_host_port(host, port)
    if not addresses:
        return f"no address of {where} was found within {timeout_s:g} s"
    tried = ", ".join(dict.fromkeys(str(address[4][0]) for address in addresses))
    shown = "" if tried == host else f" ({tried})"
    return f"no answer from {where}{shown} within {timeout_s:g} s"
