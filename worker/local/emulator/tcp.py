"""TCP-level faults of a connection: reset, end, stop reading.

The functions do nothing if the connection is already closed.
"""

import socket
import struct
from typing import Final

import anyio
from websockets.asyncio.server import ServerConnection

GRACE_S: Final = 2.0
"""Timeout before a reset for the client to answer a close frame or the end of the stream."""

_NO_LINGER: Final = struct.pack("ii", 1, 0)  # makes closing a TCP socket a reset


def reset(ws: ServerConnection) -> None:
    """Reset the connection: data in transit is dropped."""
    if not ws.transport.is_closing():
        sock = ws.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    ws.transport.abort()


def end(ws: ServerConnection) -> None:
    """End the server's side of the stream, without a close frame."""
    if not ws.transport.is_closing():
        ws.transport.write_eof()


def stop_reading(ws: ServerConnection) -> None:
    """Read nothing more; pings are not answered either."""
    if not ws.transport.is_closing():
        ws.transport.pause_reading()


async def outlast(ws: ServerConnection, patience_s: float) -> None:
    """Wait until the client disconnects; reset the connection after `patience_s` seconds."""
    with anyio.move_on_after(patience_s):
        await ws.wait_closed()
    reset(ws)
    await ws.wait_closed()
