"""A fast writer for audio frames, of which there is one per chunk.

The `websockets` library writes all other frames and reads all frames. For an unfragmented,
uncompressed binary frame it takes twice as long, and requests four random bytes from the kernel
each time.
"""

import os
import struct

# The library's own masking function, in C if that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]

_WHOLE_BINARY, _MASKED = 0x82, 0x80
_SHORT, _MEDIUM, _LONG = struct.Struct("!BB4s"), struct.Struct("!BBH4s"), struct.Struct("!BBQ4s")
_POOL_BYTES = 4_096


class FrameWriter:
    """Writes a client's binary frames (RFC 6455, section 5).

    Masks come from the kernel's generator, as the standard requires, a thousand at a time.
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
