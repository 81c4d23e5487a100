"""The server side of a WebSocket, faster for whole messages of one frame (RFC 6455, section 5).

Carriers send little else, fifty a second and call. To the library's parser, each costs several
times as much. It parses everything else: other frames, parts of frames, and what is not valid.
"""

from collections.abc import Generator
from typing import Final

from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

# The library's own masking function, in C if that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # isort: skip

_WHOLE_TEXT: Final = 0x81
_WHOLE_BINARY: Final = 0x82
_MASKED: Final = 0x80
_TWO_BYTES: Final = 0xFE
_MASK_BYTES: Final = 4


class FastServerProtocol(ServerProtocol):
    """The server side of one connection, which shows where a message begins."""

    def parse(self) -> Generator[None]:
        """Parse incoming data. Called by the library's constructor."""
        self.reader = self._frame_reader = _FrameReader()
        yield from super().parse()

    @property
    def between_messages(self) -> bool:
        """Whether the next byte begins a frame that no fragment precedes.

        If so, the caller may handle whole messages itself instead of passing them.
        """
        at_frame = self._frame_reader.between_frames
        return at_frame and self.state is State.OPEN and self.current_size is None


class _FrameReader(StreamReader):
    """Shows where a frame begins."""

    def __init__(self) -> None:
        super().__init__()
        self.between_frames = False
        """Whether the parser waits for the first byte of a frame."""

    def at_eof(self) -> Generator[None, None, bool]:
        # The parser calls this before each frame, and nowhere else.
        self.between_frames = True
        at_eof = yield from super().at_eof()
        self.between_frames = False
        return at_eof


def split_messages(data: bytes, max_bytes: int) -> tuple[list[str | bytes], int]:
    """Return the messages that `data` begins with, each one masked frame, and where they end.

    `data` begins with a frame. Text that is not UTF-8, and messages above `max_bytes` or 64 KiB,
    are left to the library.
    """
    messages: list[str | bytes] = []
    at, size = 0, len(data)
    while size - at > _MASK_BYTES:
        kind, length = data[at], data[at + 1]
        begin = at + 2
        if length == _TWO_BYTES:
            length = data[at + 2] << 8 | data[at + 3]
            begin += 2
        elif _MASKED <= length < _TWO_BYTES:
            length -= _MASKED
        else:
            break  # eight bytes of length, or no mask
        content = begin + _MASK_BYTES
        end = content + length
        if end > size or length > max_bytes:
            break
        if kind == _WHOLE_BINARY:
            messages.append(bytes(apply_mask(data[content:end], data[begin:content])))
        elif kind == _WHOLE_TEXT:
            try:
                messages.append(apply_mask(data[content:end], data[begin:content]).decode())
            except UnicodeDecodeError:
                break
        else:
            break
        at = end
    return messages, at
