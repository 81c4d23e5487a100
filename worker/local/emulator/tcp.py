"""What happens to a connection below WebSocket: reset, ended, or left standing.

Each does nothing to a connection that is gone.
"""

import socket
import struct
from typing import Final

import anyio
from websockets.asyncio.server import ServerConnection

GRACE_S: Final = 2.0
"""How long a client may take to answer our close, or the end of our stream, before a reset."""

_NO_LINGER: Final = struct.pack("ii", 1, 0)  # makes closing a TCP socket a reset


def reset(ws: ServerConnection) -> None:
    """Cut the connection: what is on its way is dropped, and the client gets a reset."""
    if not ws.transport.is_closing():
        sock = ws.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    ws.transport.abort()


def end(ws: ServerConnection) -> None:
    """End our side of the stream, without a close frame."""
    if not ws.transport.is_closing():
        ws.transport.write_eof()


def stop_reading(ws: ServerConnection) -> None:
    """Read nothing more, so that pings are not answered either."""
    if not ws.transport.is_closing():
        ws.transport.pause_reading()


async def outlast(ws: ServerConnection, patience_s: float) -> None:
    """Wait for the client to leave, and reset the connection if it takes longer."""
    with anyio.move_on_after(patience_s):
        await ws.wait_closed()
    reset(ws)
    await ws.wait_closed()
