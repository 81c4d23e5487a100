"""Detection of sound files by their first bytes, and repair of their lengths. No I/O."""

import struct
from collections.abc import Callable
from typing import Final

MIN_HEAD_BYTES: Final = 16

# Signatures of file formats, by offset. Formats without sound are included: no raw audio begins
# like them.
_MARKS: Final = {
    0: (
        *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff\x2e\x91\xcf\x11", b"FORM", b"fLaC", b"OggS"),
        *(b"ID3", b".snd", b"caff", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        *(b"FLV\x01", b"#!AMR", b".RMF", b"NIST_1A", b"wvpk", b"MAC ", b"TTA1", b"DSD ", b"MPCK"),
        *(b"tBaK", b"Creative Voi", b"\x00\x00\x01\xba"),
        *(b"\x89PNG", b"GIF8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"PK\x03\x04", b"%PDF-"),
        *(b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
        *(b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml"),
    ),
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
}
_FRAMES: Final = 4  # number of consecutive frame headers that identify a format

_MPEG_TS_PACKET: Final = 188
_MPEG_KBITS: Final = {  # by layer, of version 1 and of the others
    1: (
        (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
        (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    ),
    2: (
        (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
        (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    ),
    3: (
        (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
        (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    ),
}
_MPEG_RATES: Final = (44_100, 48_000, 32_000)

_TO_THE_END_32: Final = struct.pack(">I", 0x7FFF_FFF0)
_TAG_CHUNKS: Final = (b"LIST", b"bext")
_MAX_TAG_BYTES: Final = 1 << 20
_TO_THE_END_64: Final = struct.pack("<Q", 1 << 40)


def is_file(head: bytes) -> bool | None:
    """Return whether these first bytes are those of a file, and not of raw audio.

    None: more bytes are needed. If there are no more, the input is raw audio.
    """
    if len(head) < MIN_HEAD_BYTES:
        return None
    if any(head.startswith(marks, at) for at, marks in _MARKS.items()):
        return True
    if head[0] == 0x47:
        return _repeats(head, _transport_packet_bytes)
    if head[0] == 0xFF:
        return _repeats(head, _frame_bytes)
    return False


def mended(head: bytes) -> bytes:
    """Return a file's first bytes with lengths that allow reading the rest.

    A recorder that crashes, or writes to a pipe, leaves lengths of 0 or of the maximum. FFmpeg
    reads such a WAV or CAF to its end, but not an AIFF, AU, RF64 or Wave64. Large tags of a WAV
    are skipped to save memory.
    """
    if head.startswith((b"RIFF", b"RF64", b"BW64")):
        head = _without_large_tags(head)
    if head.startswith(b".snd") and head[8:12] == bytes(4):
        return _put(head, 8, b"\xff" * 4)
    if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC"):
        return _mended_aiff(head)
    if head.startswith((b"RF64", b"BW64")) and head[12:16] == b"ds64":
        return _mended_64(head, 28)
    if head.startswith(b"riff\x2e\x91\xcf\x11"):
        at = head.find(b"data\xf3\xac\xd3\x11")
        head = _mended_64(head, 16)
        return _mended_64(head, at + 16) if at > 0 else head
    return head


def _repeats(head: bytes, length_at: Callable[[bytes, int], int]) -> bool | None:
    at = 0
    for _ in range(_FRAMES):
        if len(head) < at + 7:
            return None
        length = length_at(head, at)
        if not length:
            return False
        at += length
    return True


def _transport_packet_bytes(head: bytes, at: int) -> int:
    return _MPEG_TS_PACKET if head[at] == 0x47 else 0


def _frame_bytes(head: bytes, at: int) -> int:
    """Return the length of the MPEG audio or ADTS frame at `at`, 0 if there is none."""
    first, second, third = head[at : at + 3]
    if first != 0xFF:
        return 0
    if second & 0xF6 == 0xF0:  # ADTS
        length = (head[at + 3] & 3) << 11 | head[at + 4] << 3 | head[at + 5] >> 5
        return length if third >> 2 & 15 < 13 else 0
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_index, bit_rate_index = third >> 2 & 3, third >> 4
    if second & 0xE0 != 0xE0 or version == 1 or layer == 4:
        return 0
    if rate_index == 3 or not 1 <= bit_rate_index <= 14:
        return 0
    kbits = _MPEG_KBITS[layer][version != 3][bit_rate_index - 1]
    rate = _MPEG_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    padding = third >> 1 & 1
    if layer == 1:
        return (12_000 * kbits // rate + padding) * 4
    samples = 1_152 if layer == 2 or version == 3 else 576
    return samples // 8 * 1_000 * kbits // rate + padding


def _mended_aiff(head: bytes) -> bytes:
    head = _mended_32(head, 4, least=12)
    at = 12
    while at + 12 <= len(head):
        name, length = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8])
        if name == b"SSND":
            return _mended_32(head, at + 4, least=9)
        if name == b"COMM" and head[at + 10] >= 0x80:  # the number of frames
            head = _put(head, at + 10, bytes(4))
        at += 8 + length + length % 2
    return head


def _without_large_tags(head: bytes) -> bytes:
    """Rename large tag chunks that FFmpeg would read into memory: it skips unknown names."""
    at = 12
    while at + 8 <= len(head):
        length = int.from_bytes(head[at + 4 : at + 8], "little")
        if head[at : at + 4] in _TAG_CHUNKS and length > _MAX_TAG_BYTES:
            head = _put(head, at, b"junk")
        at += 8 + length + length % 2
    return head


def _mended_32(head: bytes, at: int, least: int) -> bytes:
    """Repair a big endian length that is below `least`, or negative."""
    length = int.from_bytes(head[at : at + 4], signed=True)
    return _put(head, at, _TO_THE_END_32) if length < least else head


def _mended_64(head: bytes, at: int) -> bytes:
    """Repair a little endian length that is 0, or larger than any file."""
    length = int.from_bytes(head[at : at + 8], "little")
    return head if 0 < length < 1 << 60 else _put(head, at, _TO_THE_END_64)


def _put(head: bytes, at: int, value: bytes) -> bytes:
    return (head[:at] + value + head[at + len(value) :])[: len(head)]
