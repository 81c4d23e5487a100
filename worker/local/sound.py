"""Streaming decoder for sound files and for the sound of videos.

A source uses a few megabytes for a file of any length, and returns its first samples at once.
PyAV (FFmpeg) demuxes and decodes; the samples are mono floats at the requested rate.
"""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, Protocol

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
from worker.local.pcm import encode
from worker.local.sound_headers import is_file, mended
from worker.text import pluralize

Samples = NDArray[np.float32]

MIN_RATE_HZ: Final = 1_000
MAX_RATE_HZ: Final = 3_000_000  # DSD512, as FFmpeg counts it
MAX_CHANNELS: Final = 256

# Playlists and scripts are excluded: FFmpeg would open the files they refer to.
_CONTAINERS: Final = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,eac3,flac,flv,gsm,ircam,"
    "loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,paf,pvf,rm,sln,tak,tta,"
    "voc,w64,wav,wsd,wv,wve,xwma"
)
_OPTIONS: Final = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}

# A pipe may be live: its first sound must not wait for seconds of analysis.
_PIPE_OPTIONS: Final = {"analyzeduration": "100000"}  # microseconds
# Tags may have any encoding. PyAV 18 needs an option for that, PyAV 19 does not have it.
_TEXT: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}
)
_HEAD_BYTES: Final = 4_096  # first bytes of a file, checked for lengths

# FFmpeg's sample formats: numpy dtype, and full scale (0: floats).
_FORMATS: Final = {
    "u8": ("u1", 128.0),
    "s16": ("i2", 32_768.0),
    "s32": ("i4", 2.0**31),
    "s64": ("i8", 2.0**63),
    "flt": ("f4", 0.0),
    "dbl": ("f8", 0.0),
}
_LOUDEST: Final = 16.0  # 24 dB over full scale: larger values are damage, and would become NaN
_CANCELLED: Final = 1e-3  # share of energy left in a mix of opposite channels
_SLICE: Final = (
    8_192  # samples resampled at a time; at 192 kHz the result may be 200 times as large
)
_MAX_DAMAGED_AT_START: Final = 1_000  # packets; after that many the file has no sound


class Readable(Protocol):
    """An open binary file or similar object. Need not be seekable."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; empty at the end."""
        ...


class SoundSource:
    """Mono sound of an open sound file or video, read once from beginning to end.

    `name` is the file's name in errors. Raises SoundError if the file cannot be read or has no
    sound that can be decoded. The file stays open.
    """

    def __init__(self, file: Readable, name: str) -> None:
        self.name = name
        self.damaged = 0
        """Number of packets that could not be decoded and were skipped."""
        self.seconds: float | None = None
        """Duration according to the file; None if unknown."""
        self._container: InputContainer | None = None
        try:
            self._open(file)
        except BaseException:
            self.close()
            raise

    def blocks(self, rate: int) -> Iterator[Samples]:
        """Yield the samples at `rate` Hz; full scale is 1, which resampling may exceed.

        Raises SoundError if the file cannot be read any further.
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
        """Yield the bytes that a client with this format sends.

        Raises ValueError for an unknown encoding, SoundError as `blocks` does.
        """
        return (encode(block, audio.encoding) for block in self.blocks(audio.sample_rate))

    def close(self) -> None:
        """Close the decoder."""
        if self._container is not None:
            self._container.close()

    def _open(self, opened: Readable) -> None:
        """Select the audio stream, and decode its first frame."""
        try:
            file = _Input(opened)
        except OSError as error:
            raise self._unreadable(error) from error
        if not file.head:
            raise SoundError(f"{self.name} holds no audio: it is empty")
        options = _OPTIONS if file.seekable() else _OPTIONS | _PIPE_OPTIONS
        try:
            self._container = av.open(file, "r", options=options, **_TEXT)
        except (av.FFmpegError, OSError, ValueError) as error:
            self._raise_fault(file)
            message = f"{self.name} is not a sound file that can be read"
            if is_file(file.head):
                raise SoundError(f"{message}: it is damaged, or of an unknown kind") from error
            raise UnknownSoundError(message) from error
        stream = self._find(self._container)
        frames = self._decode(self._container, stream, file)
        first = next(frames, None)
        if first is None:
            self._check(stream.sample_rate, stream.channels)
            why = f": {pluralize(self.damaged, 'packet')} cannot be decoded" if self.damaged else ""
            raise SoundError(f"{self.name} holds no audio{why}")
        if self._container.duration is not None:
            self.seconds = self._container.duration / av.time_base
        self._frames = chain((first,), frames)

    def _find(self, container: InputContainer) -> AudioStream:
        """Return the stream to play; if there are several, the one FFmpeg ranks best."""
        best = container.streams.best("audio")
        streams = (best,) if isinstance(best, AudioStream) else container.streams.audio
        if not streams:
            what = "video, but no audio" if container.streams.video else "no audio"
            raise SoundError(f"{self.name} holds {what}")
        decoder: AudioCodecContext | None = streams[
            0
        ].codec_context  # None if FFmpeg has no decoder
        if decoder is None:
            raise SoundError(f"{self.name}: its audio is of a kind that cannot be decoded")
        # A value missing in the header is 0 until the first frame.
        self._check(decoder.sample_rate or MIN_RATE_HZ, decoder.channels or 1)
        return streams[0]

    def _check(self, rate: int, channels: int) -> None:
        """Raise SoundError if the file's sample rate or channels cannot be played."""
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise SoundError(
                f"{self.name} has a sample rate of {rate} Hz: "
                f"only {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be played"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise SoundError(
                f"{self.name} has a number of channels that cannot be played: "
                f"only 1 to {MAX_CHANNELS} channels can"
            )

    def _decode(
        self, container: InputContainer, stream: AudioStream, file: "_Input"
    ) -> Iterator[AudioFrame]:
        """Yield the stream's frames; skip and count packets that cannot be decoded."""
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
        """Raise the error that stopped reading the file, if any."""
        if isinstance(file.fault, OSError):
            raise self._unreadable(file.fault) from file.fault
        if file.fault is not None:
            raise file.fault

    def _unreadable(self, error: OSError) -> SoundError:
        return SoundError(f"{self.name}: cannot be read: {error.strerror}")


class _Input:
    """Input of FFmpeg: the file, with repaired lengths in its header."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._at = 0
        self.fault: Exception | None = None
        """Error of a read. FFmpeg takes some errors for the end of the file."""
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
        if len(data) > size:  # FFmpeg's buffer would overflow, and PyAV does not check
            self.fault = ValueError(f"received {len(data)} bytes where {size} were requested")
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
    """Return the mean of the channels, or one of them if they cancel each other out."""
    if len(channels) == 1:
        only: Samples = channels[0]
        return only
    mixed: Samples = channels.mean(axis=0)
    energies = np.einsum("ij,ij->i", channels, channels)
    if np.dot(mixed, mixed) >= _CANCELLED * energies.mean():
        return mixed
    # The first loud channel, not the loudest: it is the same one in every frame.
    loud: Samples = channels[int(np.argmax(2 * energies >= energies.max()))]
    return loud
