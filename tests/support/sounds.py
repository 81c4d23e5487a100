"""Sound files for tests: made by PyAV, or written by hand where a header has to be wrong."""

import struct
from contextlib import closing
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import encode
from worker.local.sound import Readable, SoundSource

Samples = NDArray[np.float32]

PCM: Final = 1
FLOAT: Final = 3
ALAW: Final = 6
MULAW: Final = 7
UNKNOWN: Final = 0xFFFFFFFF  # a length as left by a recorder that crashed or wrote to a pipe
_GUID: Final = bytes.fromhex("0000000010008000 00aa00389b71".replace(" ", ""))


def tone(rate: int, seconds: float = 1.0, *, hz: float = 440.0, level: float = 0.5) -> Samples:
    """A sine wave."""
    at = np.arange(int(rate * seconds)) / rate
    return (level * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def pcm(samples: Samples, dtype: str = "<i2") -> bytes:
    """Interleaved samples of the given type. Each row is a channel."""
    kind = np.dtype(dtype)
    rows = np.atleast_2d(samples).T.astype(np.float64)
    if kind.kind == "f":
        return rows.astype(kind).tobytes()
    levels = np.rint(np.clip(rows, -1, 1) * (2.0 ** (8 * kind.itemsize - 1) - 1))
    if kind == np.dtype("u1"):
        return (levels + 128).astype("u1").tobytes()
    return levels.astype(kind).tobytes()


def pcm24(samples: Samples) -> bytes:
    """Samples as 24 bit numbers, little endian."""
    wide = np.frombuffer(pcm(samples, "<i4"), "u1").reshape(-1, 4)
    return wide[:, 1:].tobytes()


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    """A RIFF chunk whose header may contain a wrong length."""
    stated = struct.pack("<I", len(body) if length is None else length)
    return name + stated + body + b"\0" * (len(body) % 2)


def wav(
    data: bytes,
    rate: int,
    *,
    bits: int = 16,
    channels: int = 1,
    tag: int = PCM,
    extensible: bool = False,
    length: int | None = None,
    riff_length: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A WAV file."""
    align = channels * bits // 8 & 0xFFFF
    rate_bytes = rate * align & 0xFFFFFFFF
    fields = struct.pack("<HHIIHH", tag, channels, rate, rate_bytes, align, bits)
    if extensible:
        fields = struct.pack("<HHIIHH", 0xFFFE, channels, rate, rate_bytes, align, bits)
        fields += struct.pack("<HHIH", 22, bits, (1 << channels) - 1, tag) + _GUID
    body = b"WAVE" + chunk(b"fmt ", fields) + before + chunk(b"data", data, length) + after
    return chunk(b"RIFF", body, riff_length)


def rf64(data: bytes, rate: int) -> bytes:
    """A WAV file with 64 bit lengths, 16 bit mono."""
    fields = struct.pack("<HHIIHH", PCM, 1, rate, rate * 2, 2, 16)
    lengths = struct.pack("<QQQI", len(data) + 80, len(data), len(data) // 2, 0)
    body = chunk(b"ds64", lengths) + chunk(b"fmt ", fields) + chunk(b"data", data, UNKNOWN)
    return b"RF64" + struct.pack("<I", UNKNOWN) + b"WAVE" + body


def aiff(data: bytes, rate: int, *, frames: int | None = None, length: int | None = None) -> bytes:
    """An AIFF file, 16 bit mono, big endian."""
    exponent = rate.bit_length() - 1
    extended = struct.pack(">HQ", 16383 + exponent, rate << (63 - exponent))
    count = len(data) // 2 if frames is None else frames
    common = b"COMM" + struct.pack(">IhIh", 18, 1, count, 16) + extended
    stated = len(data) + 8 if length is None else length
    sound = b"SSND" + struct.pack(">III", stated, 0, 0) + data
    body = b"AIFF" + common + sound
    return b"FORM" + struct.pack(">I", len(body) if length is None else length) + body


def au(data: bytes, rate: int, *, encoding: int = 3, length: int | None = None) -> bytes:
    """A Sun AU file, mono: encoding 1 is mu-law, 3 is 16 bit, big endian."""
    stated = len(data) if length is None else length
    return b".snd" + struct.pack(">IIIII", 28, stated, encoding, rate, 1) + bytes(4) + data


def encoded(
    target: Path | BytesIO,
    samples: Samples,
    rate: int,
    codec: str,
    *,
    container: str | None = None,
    layout: str = "mono",
    options: dict[str, str] | None = None,
) -> None:
    """Write samples with PyAV. Each row is a channel."""
    rows = np.atleast_2d(samples)
    with av.open(target, "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(stream.format, layout, rate)
        step = 4_096
        for at in range(0, rows.shape[1], step):
            part = np.ascontiguousarray(rows[:, at : at + step])
            frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for ready in resampler.resample(frame):
                output.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            output.mux(stream.encode(ready))
        output.mux(stream.encode(None))


def wire(samples: Samples, rate: int, audio: AudioFormat) -> bytes:
    """Samples at a rate, as the bytes that a client of that format sends."""
    if rate != audio.sample_rate:
        samples = soxr.resample(samples, rate, audio.sample_rate)
    return encode(samples, audio.encoding)


def open_sound(file: Readable, name: str = "the file") -> closing[SoundSource]:
    """Open a sound for a `with` block."""
    return closing(SoundSource(file, name))


def played(path: Path, audio: AudioFormat) -> bytes:
    """A sound file, as the bytes that a client of that format sends."""
    with path.open("rb") as file, open_sound(file) as sound:
        return b"".join(sound.encode(audio))


def samples_of(source: Path | Readable, rate: int) -> Samples:
    """Read a whole sound file."""
    if isinstance(source, Path):
        source = BytesIO(source.read_bytes())
    with open_sound(source) as sound:
        return np.concatenate([np.empty(0, np.float32), *sound.blocks(rate)])
