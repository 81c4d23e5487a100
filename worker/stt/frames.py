"""The WebSocket protocol of the `websockets` library, more lenient, and faster for audio.

The library fails the connection on a message above its limit, and on a close frame whose reason is
not UTF-8 or whose code is not allowed. A session would meet them again at every replay. Here a
large message is discarded as it arrives, the reason is read with replacement characters, and such a
code is read as 1011.
"""

import os
import struct
from collections.abc import Generator
from typing import ClassVar, Final

from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import Protocol, State

# The library's own masking function, in C if that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # isort: skip
from websockets.streams import StreamReader

MAX_MESSAGE_BYTES = 1024 * 1024
"""Maximum size of a message from the provider; larger ones are discarded."""

MAX_REASON_BYTES = 123
"""Maximum size of a close reason (RFC 6455, section 5.5)."""

DISCARDED: Final = bytearray()
"""Payload of a frame that was too large; compare it by identity."""

_WHOLE_TEXT, _WHOLE_BINARY, _MASKED = 0x81, 0x82, 0x80
_TWO_BYTES = 126
_SHORT, _MEDIUM, _LONG = struct.Struct("!BB4s"), struct.Struct("!BBH4s"), struct.Struct("!BBQ4s")
_POOL_BYTES = 4_096


class FrameReader(StreamReader):
    """Shows where a frame begins."""

    def __init__(self) -> None:
        super().__init__()
        self.between_frames = False
        """Whether the parser waits for the first byte of a frame."""

    def at_eof(self) -> Generator[None, None, bool]:
        """Return whether the stream has ended."""
        # The parser calls this before each frame, and nowhere else.
        self.between_frames = True
        at_eof = yield from super().at_eof()
        self.between_frames = False
        return at_eof


class MessageProtocol(Protocol):
    """One side of a connection, which shows where a message begins."""

    reader_type: ClassVar[type[FrameReader]] = FrameReader

    def parse(self) -> Generator[None]:
        """Parse incoming data. Called by the library's constructor."""
        self.reader = self._frame_reader = self.reader_type()
        yield from super().parse()

    @property
    def between_messages(self) -> bool:
        """Whether the next byte begins a frame that no fragment precedes.

        If so, the caller may handle whole frames itself instead of passing them.
        """
        at_frame = self._frame_reader.between_frames
        return at_frame and self.state is State.OPEN and self.current_size is None


class _DiscardingReader(FrameReader):
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


class LenientProtocol(MessageProtocol, ClientProtocol):
    """The client side of one connection. It does not limit fragmented messages."""

    reader_type = _DiscardingReader

    def recv_frame(self, frame: Frame) -> None:
        """Process an incoming frame."""
        if frame.opcode is Opcode.CLOSE and frame.data:
            frame.data = _readable(bytes(frame.data))
        super().recv_frame(frame)


def split_texts(data: bytes, texts: list[bytes]) -> int:
    """Append the payloads of the whole text frames that `data` begins with; return their end.

    `data` begins with a frame. The provider sends little else, and to the library's parser each
    frame costs ten times as much. It parses what follows: any other frame, and part of a frame.
    """
    at, size = 0, len(data)
    while size - at >= 2 and data[at] == _WHOLE_TEXT:
        begin, length = at + 2, data[at + 1]
        if length == _TWO_BYTES:
            begin += 2
            if size < begin:
                break
            length = data[at + 2] << 8 | data[at + 3]
        elif length > _TWO_BYTES:
            break  # eight bytes of length, or a mask
        end = begin + length
        if end > size:
            break
        texts.append(data[begin:end])
        at = end
    return at


def _readable(payload: bytes) -> bytes:
    """Return the payload of a close frame as one that the library accepts."""
    code: int = CloseCode.INTERNAL_ERROR
    reason = b"close frame of 1 byte"
    if len(payload) > 1:
        (sent,), reason = struct.unpack("!H", payload[:2]), payload[2:]
        try:
            Close(sent, "").check()
            code = sent
        except ProtocolError:
            reason = b"invalid close code %d%s" % (sent, b": " + reason if reason else b"")
    text = reason.decode("utf-8", "replace").encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return Close(code, text).serialize()


class FrameWriter:
    """Writes a client's binary frames (RFC 6455, section 5), of which there is one per chunk.

    For an unfragmented, uncompressed binary frame the library takes twice as long, and requests
    four random bytes from the kernel each time. Here masks come from the kernel's generator too, as
    the standard requires, a thousand at a time.
    """

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def binary(self, payload: bytes) -> bytes:
        """Return a frame with `payload` as one complete message."""
        at = self._at
        if at == len(self._pool):
            self._pool, at = os.urandom(_POOL_BYTES), 0
        self._at = at + 4
        mask = self._pool[at : at + 4]
        size = len(payload)
        if size < 126:
            head = _SHORT.pack(_WHOLE_BINARY, _MASKED | size, mask)
        elif size < 65_536:
            head = _MEDIUM.pack(_WHOLE_BINARY, _MASKED | 126, size, mask)
        else:
            head = _LONG.pack(_WHOLE_BINARY, _MASKED | 127, size, mask)
        masked: bytes = apply_mask(payload, mask)
        return head + masked
