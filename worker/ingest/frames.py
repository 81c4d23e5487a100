"""The server side of a WebSocket, faster for whole messages of one frame (RFC 6455, section 5).

Carriers send little else, fifty a second and call. To the library's parser, each costs several
times as much. It parses everything else: other frames, parts of frames, and what is not valid.
"""

from typing import Final

from websockets.server import ServerProtocol

from worker.stt.frames import MessageProtocol

# The library's own masking function, in C if that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # isort: skip

_WHOLE_TEXT: Final = 0x81
_WHOLE_BINARY: Final = 0x82
_MASKED: Final = 0x80
_TWO_BYTES: Final = 0xFE
_MASK_BYTES: Final = 4


class FastServerProtocol(MessageProtocol, ServerProtocol):
    """The server side of one connection, which shows where a message begins."""


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
