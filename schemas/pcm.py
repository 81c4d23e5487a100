"""Raw mono samples in the provider's six encodings.

Mu-law and A-law samples are codes of ITU-T G.711; the others are little endian numbers. This module
needs no numpy; `worker.local.pcm` converts whole chunks with it.
"""

import struct
from enum import StrEnum
from functools import cache


class Encoding(StrEnum):
    """Raw, headerless, mono sample formats of the provider."""

    PCM_S16LE = "pcm_s16le"
    PCM_S32LE = "pcm_s32le"
    PCM_F16LE = "pcm_f16le"
    PCM_F32LE = "pcm_f32le"
    PCM_MULAW = "pcm_mulaw"
    PCM_ALAW = "pcm_alaw"

    @property
    def type_code(self) -> str:
        """Type of a sample, as `struct` and numpy write it."""
        return _TYPE_CODES[self]

    @property
    def width(self) -> int:
        """Bytes per sample."""
        return _WIDTHS[self]

    @property
    def silence(self) -> bytes:
        """One sample of silence; A-law has no zero, and this is its lowest level."""
        return _SILENCE.get(self, bytes(self.width))


_TYPE_CODES = dict(zip(Encoding, "hiefBB", strict=True))
_WIDTHS = {encoding: struct.calcsize(code) for encoding, code in _TYPE_CODES.items()}
MAX_SAMPLE_BYTES = max(_WIDTHS.values())
"""Size of the largest sample; a multiple of every sample size."""

_SILENCE = {Encoding.PCM_MULAW: b"\xff", Encoding.PCM_ALAW: b"\xd5"}


@cache
def g711_levels(encoding: Encoding) -> tuple[int, ...]:
    """Return the level of each mu-law or A-law code, on the scale of 16 bits."""
    level = _mulaw_level if encoding is Encoding.PCM_MULAW else _alaw_level
    return tuple(map(level, range(256)))


def _mulaw_level(code: int) -> int:
    code ^= 0xFF
    level = ((((code & 0x0F) << 3) + 0x84) << (code >> 4 & 7)) - 0x84
    return -level if code & 0x80 else level


def _alaw_level(code: int) -> int:
    code ^= 0x55
    segment, level = code >> 4 & 7, ((code & 0x0F) << 4) + 8
    if segment:
        level = (level + 0x100) << (segment - 1)
    return level if code & 0x80 else -level
