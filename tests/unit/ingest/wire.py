"""What a peer of the HTTP port sends and receives, byte by byte."""

import socket
import struct

import anyio
import anyio.abc

from worker.ingest.http import Exchange, Limits

FAST = Limits(
    request_timeout_s=0.4,
    ping_interval_s=0.2,
    pong_timeout_s=0.2,
    write_timeout_s=0.4,
    close_timeout_s=0.4,
)
"""Limits whose timeouts pass soon."""

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

UPGRADE = (
    b"GET /raw HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

MASK = b"\x01\x02\x03\x04"


def frame(opcode: int, content: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """Return a frame of a client."""
    mask_bit = 0x80 if masked else 0
    if len(content) < 126:
        size = bytes([mask_bit | len(content)])
    elif len(content) < 65_536:
        size = struct.pack("!BH", mask_bit | 126, len(content))
    else:
        size = struct.pack("!BQ", mask_bit | 127, len(content))
    head = bytes([(0x80 if fin else 0) | opcode]) + size
    if not masked:
        return head + content
    repeated = MASK * (len(content) // 4 + 1)
    return head + MASK + bytes(a ^ b for a, b in zip(content, repeated, strict=False))


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame of the server."""
    return frame(CLOSE, struct.pack("!H", code) + reason, masked=False)


async def receive_all(stream: anyio.abc.ByteStream) -> bytes:
    """Receive to the end of a connection; a reset is an end as well."""
    received = b""
    try:
        while True:
            received += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return received


async def talk(port: int, *parts: bytes) -> bytes:
    """Send in parts and return the whole answer."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for part in parts:
            try:
                await stream.send(part)
            except anyio.BrokenResourceError:
                break  # the answer is there already
            await anyio.wait_all_tasks_blocked()
        return await receive_all(stream)


async def send_forever(stream: anyio.abc.ByteStream, data: bytes) -> None:
    """Send until the connection is lost."""
    while True:
        await stream.send(data)
        await anyio.sleep(0.01)


async def reset(stream: anyio.abc.ByteStream) -> None:
    """Close a connection without a goodbye."""
    raw: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


async def open_websocket(port: int) -> anyio.abc.ByteStream:
    """Return a stream behind its handshake."""
    stream = await anyio.connect_tcp("127.0.0.1", port)
    await stream.send(UPGRADE)
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += await stream.receive(1)
    assert received.startswith(b"HTTP/1.1 101 "), received
    return stream


def status(answer: bytes) -> int:
    """Return the status of an answer, 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


async def answer_ok(exchange: Exchange) -> None:
    """Answer with the target of the request."""
    await exchange.respond(200, exchange.request.target.encode(), "text/plain")


async def echo(exchange: Exchange) -> None:
    """Send each message back."""
    socket = await exchange.accept("media")
    while True:
        await socket.send(await socket.receive())
