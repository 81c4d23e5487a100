"""The WebSocket protocol of the `websockets` library, more lenient towards a provider.

The library fails the connection on a message above its limit, and on a close frame whose reason is
not UTF-8 or whose code is not allowed. A session would meet them again at every replay. Here a
large message is discarded as it arrives, the reason is read with replacement characters, and such a
code is read as 1011.
"""

import struct
from collections.abc import Generator
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.streams import StreamReader

MAX_MESSAGE_BYTES = 1024 * 1024
"""Maximum size of a message from the provider; larger ones are discarded."""

MAX_REASON_BYTES = 123
"""Maximum size of a close reason (RFC 6455, section 5.5)."""

DISCARDED: Final = bytearray()
"""Payload of a frame that was too large; compare it by identity."""


class LenientProtocol(ClientProtocol):
    """The client side of one connection. It does not limit fragmented messages."""

    def parse(self) -> Generator[None]:
        """Parse incoming data. Called by the library's constructor."""
        self.reader = _DiscardingReader()
        yield from super().parse()

    def recv_frame(self, frame: Frame) -> None:
        """Process an incoming frame."""
        if frame.opcode is Opcode.CLOSE and frame.data:
            frame.data = _readable(bytes(frame.data))
        super().recv_frame(frame)


class _DiscardingReader(StreamReader):
    """Buffers no payload above the limit."""

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        if n <= MAX_MESSAGE_BYTES:
            return (yield from super().read_exact(n))
        left = n
        while True:
            taken = min(left, len(self.buffer))
            del self.buffer[:taken]
            left -= taken
            if not left:
                return DISCARDED
            if self.eof:
                raise EOFError(f"stream ends {left} bytes before the end of a large frame")
            yield


def _readable(close: bytes) -> bytes:
    """Return the payload of a close frame as one that the library accepts."""
    if len(close) < 2:
        return _with_code(CloseCode.INTERNAL_ERROR, b"close frame of 1 byte")
    (code,), reason = struct.unpack("!H", close[:2]), close[2:]
    try:
        Close(code, "").check()
    except ProtocolError:
        suffix = b": " + reason if reason else b""
        return _with_code(CloseCode.INTERNAL_ERROR, b"invalid close code %d%s" % (code, suffix))
    return _with_code(code, reason)


def _with_code(code: int, reason: bytes) -> bytes:
    return struct.pack("!H", code) + _valid(reason)


def _valid(reason: bytes) -> bytes:
    """Return a close reason as valid UTF-8 that fits into a close frame."""
    readable = reason.decode("utf-8", "replace").encode()
    if len(readable) > MAX_REASON_BYTES:
        readable = readable[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode()
    return readable
