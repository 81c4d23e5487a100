"""Sound files, and the sound of videos, decoded piece by piece.

A source holds a few megabytes, whatever the length of its file, and its first samples are there at
once. PyAV (FFmpeg) demuxes and decodes; samples come out as mono floats, at the rate asked for.
"""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from worker.errors import SoundError, UnknownSoundError
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.pcm import encode
from worker.local.sound_headers import is_file, mended
from worker.plurals import counted

Samples = NDArray[np.float32]

MIN_RATE_HZ: Final = 1_000
MAX_RATE_HZ: Final = 3_000_000  # DSD512, as FFmpeg counts it
MAX_CHANNELS: Final = 256

# Playlists and scripts are left out: they name other files, and FFmpeg would open those.
_CONTAINERS: Final = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,eac3,flac,flv,gsm,ircam,"
    "loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,paf,pvf,rm,sln,tak,tta,"
    "voc,w64,wav,wsd,wv,wve,xwma"
)
_OPTIONS: Final = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}

# A pipe may be live: its first sound should not wait for seconds of it to be looked at.
_PIPE_OPTIONS: Final = {"analyzeduration": "100000"}  # microseconds
# Tags may be in any encoding. PyAV 18 needs an option for that, PyAV 19 has none.
_TEXT: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}
)
_HEAD_BYTES: Final = 4_096  # of a file, looked at for lengths

# FFmpeg's sample formats: how numpy reads a sample, and what full scale is (0: floats).
_FORMATS: Final = {
    "u8": ("u1", 128.0),
    "s16": ("i2", 32_768.0),
    "s32": ("i4", 2.0**31),
    "s64": ("i8", 2.0**63),
    "flt": ("f4", 0.0),
    "dbl": ("f8", 0.0),
}
_LOUDEST: Final = 16.0  # 24 dB over full scale: what is beyond is damage, and would end in NaN
_CANCELLED: Final = 1e-3  # of the channels' energy is left in their mix: they are opposite
_SLICE: Final = 8_192  # samples resampled at a time: at 192 kHz they may be 200 times as many
_MAX_DAMAGED_AT_START: Final = 1_000  # packets; after that many there is no sound in the file


class Readable(Protocol):
    """An open binary file, or what stands for one. Need not be seekable."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes; none at the end."""
        ...


class SoundSource:
    """The mono sound of one file, to be read once, from its beginning to its end.

    `damaged` counts the packets that could not be decoded, and were left out.
    """

    def __init__(self, name: str, file: Readable, *, owned: bool) -> None:
        self.name = name
        self.damaged = 0
        self._file = file
        self._owned = owned
        self._container: InputContainer | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def rate(self) -> int:
        """The file's own rate in Hz, at its beginning."""
        return self._rate

    @property
    def seconds(self) -> float | None:
        """How long it plays, as the file says; None if it does not."""
        return self._seconds

    def blocks(self, rate: int) -> Iterator[Samples]:
        """Give its samples at that rate in Hz; full scale is 1, which resampling may overshoot.

        Raises SoundError where the file cannot be read any further.
        """
        resampler: soxr.ResampleStream | None = None
        source_rate = rate
        for frame in self._frames:
            if frame.sample_rate != source_rate:
                if resampler is not None:
                    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)
                source_rate = frame.sample_rate
                resampler = (
                    soxr.ResampleStream(source_rate, rate, 1, dtype="float32")
                    if source_rate != rate
                    else None
                )
            samples = _mono(frame)
            for at in range(0, len(samples), _SLICE):
                piece = samples[at : at + _SLICE]
                yield piece if resampler is None else resampler.resample_chunk(piece)
        if resampler is not None:
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)

    def encode(self, audio: AudioFormat) -> Iterator[bytes]:
        """Give the bytes that a client of that format would send.

        Raises KeyError for an encoding that is not of the wire, SoundError as `blocks` does.
        """
        return (encode(block, audio.encoding) for block in self.blocks(audio.sample_rate))

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
        if self._owned and (close := getattr(self._file, "close", None)) is not None:
            close()

    def _open(self) -> None:
        """Find the sound, and decode the first of it."""
        try:
            file = _Input(self._file)
        except OSError as error:
            raise self._unreadable(error) from error
        if not file.head:
            raise SoundError(f"{self.name} holds no audio: it is empty")
        options = _OPTIONS if file.seekable() else _OPTIONS | _PIPE_OPTIONS
        try:
            self._container = av.open(file, "r", options=options, **_TEXT)
        except (av.FFmpegError, OSError, ValueError) as error:
            self._raise_fault(file)
            said = f"{self.name} is not a sound file that can be read"
            if is_file(file.head):
                raise SoundError(f"{said}: it is damaged, or of an unknown kind") from error
            raise UnknownSoundError(said) from error
        stream = self._find(self._container)
        frames = self._decode(self._container, stream, file)
        first = next(frames, None)
        if first is None:
            self._check(stream.sample_rate, stream.channels)
            why = f": {counted(self.damaged, 'packet')} cannot be decoded" if self.damaged else ""
            raise SoundError(f"{self.name} holds no audio{why}")
        self._rate = first.sample_rate
        duration = self._container.duration
        self._seconds = None if duration is None else duration / av.time_base
        self._frames = chain((first,), frames)

    def _find(self, container: InputContainer) -> AudioStream:
        """Return the stream to play: the one FFmpeg likes best, where there are several."""
        best = container.streams.best("audio")
        streams = (best,) if isinstance(best, AudioStream) else container.streams.audio
        if not streams:
            what = "video, but no audio" if container.streams.video else "no audio"
            raise SoundError(f"{self.name} holds {what}")
        decoder: AudioCodecContext | None = streams[0].codec_context  # None where FFmpeg has none
        if decoder is None:
            raise SoundError(f"{self.name}: its audio is of a kind that cannot be decoded")
        # Where the header leaves something open it is 0, until the first frame.
        self._check(decoder.sample_rate or MIN_RATE_HZ, decoder.channels or 1)
        return streams[0]

    def _check(self, rate: int, channels: int) -> None:
        """Raise SoundError if what the file says of its audio cannot be played."""
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise SoundError(
                f"{self.name} says that its sample rate is {rate} Hz: "
                f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be played"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise SoundError(
                f"{self.name} says that it has a number of channels that cannot be played: "
                f"1 to {MAX_CHANNELS} can"
            )

    def _decode(
        self, container: InputContainer, stream: AudioStream, file: "_Input"
    ) -> Iterator[AudioFrame]:
        """Give the stream's frames; leave out packets that cannot be decoded, and count them."""
        decoded = False
        try:
            for packet in container.demux(stream):
                if packet.has_sidedata("encryption_info"):
                    raise SoundError(f"{self.name}: its audio is encrypted")
                try:
                    frames = packet.decode()
                except (av.FFmpegError, ValueError):
                    self.damaged += 1
                    if not decoded and self.damaged >= _MAX_DAMAGED_AT_START:
                        return
                    continue
                for frame in frames:
                    self._check(frame.sample_rate, frame.layout.nb_channels)
                    decoded = True
                    yield frame
        except (av.FFmpegError, OSError) as error:
            self._raise_fault(file)
            if not decoded and not file.seekable():
                raise SoundError(
                    f"{self.name} is of a kind that cannot be read from a pipe; save it to a file"
                ) from error
            raise SoundError(f"{self.name} is damaged: it cannot be read any further") from error
        self._raise_fault(file)

    def _raise_fault(self, file: "_Input") -> None:
        """Raise what kept the file from being read, if something did."""
        if isinstance(file.fault, OSError):
            raise self._unreadable(file.fault) from file.fault
        if file.fault is not None:
            raise file.fault

    def _unreadable(self, error: OSError) -> SoundError:
        return SoundError(f"{self.name}: cannot be read: {error.strerror}")


def open_sound(file: Path | Readable, name: str | None = None) -> SoundSource:
    """Open a sound file, or a video for its sound, by its path or as an open binary file.

    `name` is what errors call it. A file that is passed open stays so. Raises SoundError, whose
    text names the file, if it cannot be read or holds no sound that can be decoded.
    """
    if not isinstance(file, Path):
        return SoundSource(name or "the file", file, owned=False)
    named = name or str(file)
    try:
        opened = file.open("rb", buffering=0)
    except OSError as error:
        raise SoundError(f"{named}: cannot be read: {error.strerror}") from error
    return SoundSource(named, opened, owned=True)


class _Input:
    """What FFmpeg reads from: the file, with lengths in its header that it can be read by."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._at = 0
        self.fault: Exception | None = None
        """Why reading failed. FFmpeg takes some faults for the end of the file."""
        head = b""
        while len(head) < _HEAD_BYTES and (data := self._read(_HEAD_BYTES - len(head))):
            head += data
        self.head = mended(head)

    def read(self, size: int) -> bytes:
        data = self.head[self._at : self._at + size] or self._read(size)
        self._at += len(data)
        return data

    def seekable(self) -> bool:
        able = getattr(self._file, "seekable", None)
        return able is not None and bool(able())

    def seek(self, offset: int, whence: int) -> int:
        seek: Callable[[int, int], int] = self._file.seek  # type: ignore[attr-defined]
        if whence == os.SEEK_CUR:
            offset += self._at
        self._at = seek(offset, os.SEEK_END) if whence == os.SEEK_END else offset
        seek(max(self._at, len(self.head)), os.SEEK_SET)
        return self._at

    def tell(self) -> int:
        return self._at

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except Exception as error:
            self.fault = error
            raise
        if len(data) > size:  # FFmpeg has no room for it, and PyAV does not look
            self.fault = ValueError(f"{len(data)} bytes came where {size} were asked for")
            raise self.fault
        return data


def _mono(frame: AudioFrame) -> Samples:
    """Mix a frame's channels down to one."""
    kind, full_scale = _FORMATS[frame.format.packed.name]
    dtype = np.dtype(kind)
    if frame.format.is_planar:
        raw = np.stack(
            [np.frombuffer(memoryview(plane), dtype, frame.samples) for plane in frame.planes]
        )
    else:
        channels = frame.layout.nb_channels
        packed = np.frombuffer(memoryview(frame.planes[0]), dtype, frame.samples * channels)
        raw = packed.reshape(-1, channels).T
    if not full_scale:
        raw = np.nan_to_num(raw, nan=0.0).clip(-_LOUDEST, _LOUDEST)
    samples = raw.astype(np.float32)
    if kind == "u1":
        samples -= full_scale
    if full_scale:
        samples /= full_scale
    mixed: Samples = _mix(samples).clip(-1.0, 1.0)
    return mixed


def _mix(channels: Samples) -> Samples:
    """Return the mean of the channels, or one of them where they cancel each other out."""
    if len(channels) == 1:
        only: Samples = channels[0]
        return only
    mixed: Samples = channels.mean(axis=0)
    energies = np.einsum("ij,ij->i", channels, channels)
    if np.dot(mixed, mixed) >= _CANCELLED * energies.mean():
        return mixed
    # The first loud one, rather than the loudest: it is the same one in every frame.
    loud: Samples = channels[int(np.argmax(2 * energies >= energies.max()))]
    return loud
