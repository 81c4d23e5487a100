"""Frames that carry audio: one per chunk, so written straight.

The `websockets` library writes every other frame, and reads all of them. For one that is whole,
binary and not compressed, its general way takes twice as long and asks the kernel for four random
bytes each time.
"""

import os
import struct

# What that library masks with itself: in C where that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]

_WHOLE_BINARY, _MASKED = 0x82, 0x80
_SHORT, _MEDIUM, _LONG = struct.Struct("!BB4s"), struct.Struct("!BBH4s"), struct.Struct("!BBQ4s")
_POOL_BYTES = 4_096


class FrameWriter:
    """Writes a client's binary frames (RFC 6455, section 5).

    Masks are what the kernel's generator gives, as the standard asks; a thousand at a time.
    """

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def binary(self, payload: bytes) -> bytes:
        """Return the frame that carries `payload` as a whole message."""
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
