"""Reading sound files of every kind, whole and broken."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import Encoding
from tests.support.sounds import (
    ALAW,
    FLOAT,
    MULAW,
    UNKNOWN,
    Samples,
    aiff,
    au,
    chunk,
    encoded,
    open_sound,
    pcm,
    pcm24,
    played,
    rf64,
    samples_of,
    tone,
    wav,
)
from worker.errors import SoundError
from worker.local.audio_input import AudioInput
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder, encode

RATE = 16_000
TONE = tone(RATE)
SIX = np.stack([TONE] * 6)


def made(
    codec: str, container: str, rate: int = 48_000, *, seconds: float = 1.0, **other: Any
) -> bytes:
    target = BytesIO()
    encoded(target, tone(rate, seconds), rate, codec, container=container, **other)
    return target.getvalue()


class Pipe:
    """A stream that cannot seek and delivers small pieces."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, 777))


def assert_is_the_tone(samples: Samples, *, seconds: float = 1.0, lossy: bool = False) -> None:
    """Assert that the audio is 440 Hz at half of full scale, and about as long."""
    assert len(samples) / RATE == pytest.approx(seconds, abs=0.06 if lossy else 0.001)
    assert np.all(np.isfinite(samples))
    inner = samples[RATE // 10 : RATE // 10 + RATE // 4]
    assert np.sqrt(2 * np.mean(inner**2)) == pytest.approx(0.5, rel=0.06 if lossy else 0.02)
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert np.argmax(spectrum) * 4 == 440


Maker: TypeAlias = Callable[[], bytes]

PLAIN: dict[str, Maker] = {
    "8 bit": lambda: wav(pcm(TONE, "u1"), RATE, bits=8),
    "16 bit": lambda: wav(pcm(TONE), RATE),
    "24 bit": lambda: wav(pcm24(TONE), RATE, bits=24),
    "32 bit": lambda: wav(pcm(TONE, "<i4"), RATE, bits=32),
    "float": lambda: wav(pcm(TONE, "<f4"), RATE, bits=32, tag=FLOAT),
    "double": lambda: wav(pcm(TONE, "<f8"), RATE, bits=64, tag=FLOAT),
    "mu-law": lambda: wav(encode(TONE, "pcm_mulaw"), RATE, bits=8, tag=MULAW),
    "A-law": lambda: wav(encode(TONE, "pcm_alaw"), RATE, bits=8, tag=ALAW),
    "extensible": lambda: wav(pcm(TONE), RATE, extensible=True),
    "six channels": lambda: wav(pcm(SIX), RATE, channels=6, extensible=True),
    "six floats": lambda: wav(
        pcm(SIX, "<f4"), RATE, bits=32, channels=6, tag=FLOAT, extensible=True
    ),
    "48 kHz": lambda: wav(pcm(tone(48_000)), 48_000),
    "44.1 kHz": lambda: wav(pcm(tone(44_100)), 44_100),
    "8 kHz": lambda: wav(pcm(tone(8_000)), 8_000),
    "RF64": lambda: rf64(pcm(TONE), RATE),
    "Wave64": lambda: made("pcm_s16le", "w64"),
    "AIFF": lambda: aiff(pcm(TONE, ">i2"), RATE),
    "AU": lambda: au(pcm(TONE, ">i2"), RATE),
    "AU, mu-law": lambda: au(encode(TONE, "pcm_mulaw"), RATE, encoding=1),
    "CAF": lambda: made("pcm_s16be", "caf"),
    "FLAC": lambda: made("flac", "flac"),
    "FLAC in Ogg": lambda: made("flac", "ogg"),
    "ALAC": lambda: made("alac", "ipod"),
    "WavPack": lambda: made("wavpack", "wv"),
    "TTA": lambda: made("tta", "tta"),
    "Matroska, 24 bit": lambda: made("pcm_s24le", "matroska"),
    "chunks before the data": lambda: wav(
        pcm(TONE), RATE, before=chunk(b"LIST", b"INFOISFT\x04\0\0\0\xe4\xfc\xff\0")
    ),
    "chunks after the data": lambda: wav(
        pcm(TONE), RATE, after=chunk(b"LIST", b"INFOISFT\x04\0\0\0abc\0")
    ),
    "length 0": lambda: wav(pcm(TONE), RATE, length=0, riff_length=0),
    "length 0 in the data alone": lambda: wav(pcm(TONE), RATE, length=0),
    "length unknown": lambda: wav(pcm(TONE), RATE, length=UNKNOWN, riff_length=UNKNOWN),
    "length of 2 GiB": lambda: wav(pcm(TONE), RATE, length=0x7FFF_F000, riff_length=0x7FFF_F024),
    "length too long": lambda: wav(pcm(TONE), RATE, length=99_999),
    "AIFF of length 0": lambda: aiff(pcm(TONE, ">i2"), RATE, frames=0, length=0),
    "AIFF of length 8": lambda: aiff(pcm(TONE, ">i2"), RATE, frames=0, length=8),
    "AIFF of unknown length": lambda: aiff(pcm(TONE, ">i2"), RATE, frames=UNKNOWN, length=UNKNOWN),
    "AU of length 0": lambda: au(pcm(TONE, ">i2"), RATE, length=0),
    "AU of unknown length": lambda: au(pcm(TONE, ">i2"), RATE, length=UNKNOWN),
    "RF64 of length 0": lambda: zeroed(rf64(pcm(TONE), RATE), b"ds64", 8, 28),
    "Wave64 of length 0": lambda: zeroed(made("pcm_s16le", "w64"), b"data", 16, 8),
    "CAF of length 0": lambda: zeroed(made("pcm_s16be", "caf"), b"data", 4, 8),
}
LOSSY: dict[str, Maker] = {
    "MP3": lambda: made("libmp3lame", "mp3"),
    "MP3 at 22.05 kHz": lambda: made("libmp3lame", "mp3", 22_050),
    "MP3 with junk after it": lambda: made("libmp3lame", "mp3") + b"APETAGEX" + bytes(100),
    "MP2": lambda: made("mp2", "mp2"),
    "AAC": lambda: made("aac", "adts"),
    "M4A": lambda: made("aac", "ipod", 44_100),
    "MP4": lambda: made("aac", "mp4", 44_100),
    "MP4 in fragments": lambda: made(
        "aac", "mp4", options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "MOV": lambda: made("aac", "mov"),
    "WebM": lambda: made("libopus", "webm"),
    "Matroska": lambda: made("libopus", "matroska"),
    "Opus": lambda: made("libopus", "ogg"),
    "AC-3": lambda: made("ac3", "ac3"),
    "MPEG transport stream": lambda: made("aac", "mpegts"),
    "FLV": lambda: made("aac", "flv", 44_100),
    "ADPCM of Microsoft": lambda: made("adpcm_ms", "wav"),
    "ADPCM of IMA": lambda: made("adpcm_ima_wav", "wav"),
    "G.722": lambda: made("g722", "wav", RATE),
}


def zeroed(data: bytes, mark: bytes, at: int, length: int) -> bytes:
    """Return the file with zeros from an offset to where a mark is found."""
    begin = data.index(mark) + at
    return data[:begin] + bytes(length) + data[begin + length :]


@pytest.mark.parametrize("kind", sorted(PLAIN | LOSSY))
def test_every_file_format_is_read(kind: str) -> None:
    data = (PLAIN | LOSSY)[kind]()
    assert_is_the_tone(samples_of(BytesIO(data), RATE), lossy=kind in LOSSY)


SEEKS = {"ALAC", "M4A", "MP4", "MOV", "WavPack"}


@pytest.mark.parametrize("kind", sorted((PLAIN | LOSSY).keys() - SEEKS))
def test_pipe_gives_same_audio_as_file(kind: str) -> None:
    data = (PLAIN | LOSSY)[kind]()
    assert_is_the_tone(samples_of(Pipe(data), RATE), lossy=kind in LOSSY)


def test_index_at_end_needs_seekable_file() -> None:
    with pytest.raises(SoundError, match="cannot be read from a pipe; save it to a file"):
        open_sound(Pipe(made("aac", "mp4")))


def test_vorbis_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tone.ogg"
    with av.open(path, "w") as output:
        stream: Any = output.add_stream(
            "libvorbis" if "libvorbis" in av.codecs_available else "vorbis"
        )
        stream.codec_context.options = {"strict": "experimental"}
        stream.layout, stream.sample_rate = "stereo", 48_000
        frame = av.AudioFrame.from_ndarray(np.stack([tone(48_000)] * 2), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        resampler = av.AudioResampler("fltp", "stereo", 48_000, frame_size=64)
        for ready in (*resampler.resample(frame), None):
            output.mux(stream.encode(ready))
    assert_is_the_tone(samples_of(path, RATE), lossy=True)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_audio_is_converted_to_every_encoding(encoding: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav(pcm(TONE), RATE))
    audio = AudioFormat(encoding, rate)
    samples = PcmDecoder(audio).decode(played(path, audio))
    assert len(samples) == rate
    inner = slice(rate // 20, -rate // 20)  # resampling rings at the ends
    np.testing.assert_allclose(samples[inner], tone(rate)[inner], atol=0.02)


@pytest.mark.parametrize(("encoding", "tag"), [("pcm_mulaw", MULAW), ("pcm_alaw", ALAW)])
def test_telephone_audio_is_unchanged(encoding: str, tag: int, tmp_path: Path) -> None:
    codes = encode(tone(8_000, level=0.99), encoding) + bytes(range(256))
    codes = codes.replace(b"\x7f", b"\xff")  # the other zero of mu-law
    path = tmp_path / "call.wav"
    path.write_bytes(wav(codes, 8_000, bits=8, tag=tag))
    assert played(path, AudioFormat(encoding, 8_000)) == codes


@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("<i2", 16), ("<i4", 32)])
def test_full_scale_is_preserved(dtype: str, bits: int) -> None:
    top = np.array([-1.0, 1.0] * 4_000, np.float32)
    samples = samples_of(BytesIO(wav(pcm(top, dtype), RATE, bits=bits)), RATE)
    np.testing.assert_allclose(samples, top, atol=1.01 / 128)


def test_16_bit_samples_are_exact(tmp_path: Path) -> None:
    every = np.arange(-32_768, 32_768, dtype="<i2").tobytes()
    path = tmp_path / "every.wav"
    path.write_bytes(wav(every, RATE))
    assert played(path, AudioFormat("pcm_s16le", RATE)) == every


def test_channels_are_mixed_down_to_mono() -> None:
    rows = np.stack([tone(RATE), np.zeros(RATE, np.float32)])
    data = wav(pcm(rows, "<f4"), RATE, bits=32, channels=2, tag=FLOAT)
    np.testing.assert_allclose(samples_of(BytesIO(data), RATE), TONE / 2, atol=1e-6)


def test_channels_that_cancel_out_are_not_silent() -> None:
    data = wav(pcm(np.stack([TONE, -TONE])), RATE, channels=2)
    assert_is_the_tone(samples_of(BytesIO(data), RATE))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30, -3e38])
@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_nan_samples_are_accepted(wrong: float, encoding: str, tmp_path: Path) -> None:
    rows = np.stack([tone(48_000)] * 2)
    rows[:, 24_000] = wrong
    path = tmp_path / "call.wav"
    path.write_bytes(wav(pcm(rows, "<f4"), 48_000, bits=32, channels=2, tag=FLOAT))
    audio = AudioFormat(encoding, RATE)
    samples = PcmDecoder(audio).decode(played(path, audio))
    assert np.all(np.isfinite(np.frombuffer(samples.tobytes(), np.float32)))
    assert_is_the_tone(samples, lossy=True)


@pytest.mark.parametrize(
    ("first", "second", "codec", "container"),
    [(48_000, 22_050, "libmp3lame", "mp3"), (44_100, 16_000, "aac", "adts")],
)
def test_sample_rate_can_change_inside_file(
    first: int, second: int, codec: str, container: str
) -> None:
    data = made(codec, container, first) + made(codec, container, second)
    samples = samples_of(BytesIO(data), RATE)
    assert len(samples) / RATE == pytest.approx(2, abs=0.2)
    assert_is_the_tone(samples[:RATE], lossy=True)
    assert_is_the_tone(samples[-RATE:], lossy=True)


def video(container: str, picture: str, sound: str | None, tracks: int = 1) -> bytes:
    """Two seconds of video; each sound track is an octave above the one before."""
    target = BytesIO()
    with av.open(target, "w", format=container) as output:
        shown: Any = output.add_stream(picture, rate=25)
        shown.width, shown.height, shown.pix_fmt = 64, 48, "yuv420p"
        streams: list[Any] = [
            output.add_stream(sound, rate=48_000, layout="mono") for _ in range(tracks) if sound
        ]
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 4 * number, "u1"), "yuv420p")
            frame.pts = number
            output.mux(shown.encode(frame))
        output.mux(shown.encode(None))
        for number, stream in enumerate(streams):
            samples = tone(48_000, 2.0, hz=440 * 2**number)[None]
            whole = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            whole.sample_rate, whole.pts, whole.time_base = 48_000, 0, Fraction(1, 48_000)
            cut = av.AudioResampler(stream.format, "mono", 48_000, frame_size=stream.frame_size)
            for ready in (*cut.resample(whole), *cut.resample(None), None):
                output.mux(stream.encode(ready))
    return target.getvalue()


@pytest.mark.parametrize(
    ("container", "picture", "sound", "tracks"),
    [
        ("mp4", "mpeg4", "aac", 1),
        ("webm", "libvpx", "libopus", 1),
        ("matroska", "mpeg4", "aac", 3),
        ("avi", "mpeg4", "libmp3lame", 1),
        ("mpegts", "mpeg2video", "aac", 1),
    ],
)
def test_sound_of_video_is_read(container: str, picture: str, sound: str, tracks: int) -> None:
    samples = samples_of(BytesIO(video(container, picture, sound, tracks)), RATE)
    assert_is_the_tone(samples, seconds=2, lossy=True)


def encrypted() -> bytes:
    scheme = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "1" * 32}
    return made("aac", "mp4", options={**scheme, "encryption_kid": "2" * 32})


REFUSED: dict[str, tuple[Maker, str]] = {
    "empty": (lambda: b"", "holds no audio: it is empty"),
    "no samples": (lambda: wav(b"", RATE), "holds no audio"),
    "text": (lambda: b"what was said\n" * 500, "is not a sound file that can be read"),
    "raw audio": (lambda: pcm(TONE), "is not a sound file that can be read"),
    "noise": (
        lambda: np.random.default_rng(2).bytes(500_000),
        "is not a sound file that can be read",
    ),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "damaged, or of an unknown kind"),
    "playlist": (
        lambda: b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "is not a sound file that can be read",
    ),
    "script": (
        lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
        "is not a sound file that can be read",
    ),
    "half a header": (lambda: wav(pcm(TONE), RATE)[:30], "damaged, or of an unknown kind"),
    "half an MP4": (lambda: made("aac", "mp4")[:4_000], "damaged, or of an unknown kind"),
    "unknown codec": (lambda: wav(pcm(TONE), RATE, tag=0x1234), "kind that cannot be decoded"),
    "silent video": (lambda: video("mp4", "mpeg4", None), "holds video, but no audio"),
    "encrypted": (encrypted, "its audio is encrypted"),
    "0 Hz": (lambda: wav(pcm(TONE), 0), "damaged, or of an unknown kind"),
    "1 Hz": (lambda: wav(pcm(TONE), 1), "a sample rate of 1 Hz: only 1000 to"),
    "4 GHz": (lambda: wav(pcm(TONE), 4_000_000_000), "damaged, or of an unknown kind"),
    "no channels": (lambda: wav(pcm(TONE), RATE, channels=0), "a number of channels"),
    "1,000 channels": (lambda: wav(bytes(64_000), RATE, channels=1_000), "a number of channels"),
    "65,535 channels": (lambda: wav(bytes(64_000), RATE, channels=65_535), "number of channels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unplayable_file_error_names_reason(kind: str, tmp_path: Path) -> None:
    make, why = REFUSED[kind]
    path = tmp_path / "call.wav"
    path.write_bytes(make())
    with path.open("rb") as file:
        for source in (file, Pipe(make())):
            if kind == "encrypted" and source is not file:
                continue  # its index is at the end
            with pytest.raises(SoundError, match=why) as error:
                open_sound(source, "call")
            assert str(error.value).startswith("call")
            assert "\n" not in str(error.value)


def test_open_error_names_reason(tmp_path: Path) -> None:
    with pytest.raises(SoundError, match=r"none\.wav: cannot be read: No such file or directory"):
        AudioInput(str(tmp_path / "none.wav"))
    with pytest.raises(SoundError, match="cannot be read: Is a directory"):
        AudioInput(str(tmp_path))
    locked = tmp_path / "locked.wav"
    locked.write_bytes(wav(pcm(TONE), RATE))
    locked.chmod(0)
    if os.geteuid():
        with pytest.raises(SoundError, match="cannot be read: Permission denied"):
            AudioInput(str(locked))


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("pcm_s16le", "wav"),
        ("flac", "flac"),
        ("libmp3lame", "mp3"),
        ("aac", "adts"),
        ("libopus", "ogg"),
        ("libopus", "webm"),
        ("aac", "mpegts"),
    ],
)
def test_truncated_file_gives_available_audio(codec: str, container: str) -> None:
    data = made(codec, container, seconds=10.0)
    half = samples_of(BytesIO(data[: len(data) // 2]), RATE)
    assert 3 < len(half) / RATE < 7
    assert_is_the_tone(half[:RATE], lossy=True)


@given(
    st.sampled_from(sorted(PLAIN | LOSSY)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_damage_gives_at_most_one_line(kind: str, wounds: list[tuple[int, int]]) -> None:
    data = bytearray(_cached(kind))
    for at, value in wounds:
        data[at % len(data)] = value
    with suppress(SoundError), open_sound(BytesIO(bytes(data))) as sound:
        for block in islice(sound.blocks(RATE), 500):
            assert np.all(np.abs(block) < 2)


@cache
def _cached(kind: str) -> bytes:
    return (PLAIN | LOSSY)[kind]()


def test_undecodable_packets_are_counted() -> None:
    data = bytearray(made("libmp3lame", "mp3"))
    for at in range(len(data) // 3, len(data) // 2, 40):
        data[at] ^= 0x55
    with open_sound(BytesIO(bytes(data))) as sound:
        samples = np.concatenate(list(sound.blocks(RATE)))
        assert sound.damaged > 0
    assert 0.3 * RATE < len(samples) <= RATE


class Failing:
    """A file on a disk that fails after so many bytes."""

    def __init__(self, data: bytes, good: int) -> None:
        self._file = BytesIO(data)
        self._good = good

    def read(self, size: int, /) -> bytes:
        if self._file.tell() >= self._good:
            raise OSError(5, "Input/output error")
        return self._file.read(min(size, 1_000))


@pytest.mark.parametrize("kind", ["16 bit", "FLAC", "MP3", "WebM", "AAC"])
def test_read_error_is_not_end_of_file(kind: str) -> None:
    data = (PLAIN | LOSSY)[kind]()
    for good in (0, 5_000, len(data) - 500):
        with pytest.raises(SoundError, match="cannot be read: Input/output error"):
            samples_of(Failing(data, good), RATE)


def test_vanished_or_shrunk_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(wav(pcm(tone(RATE, 20.0)), RATE))
    with path.open("rb") as file, open_sound(file) as sound:
        blocks = sound.blocks(RATE)
        next(blocks)
        os.truncate(path, 200_000)
        path.unlink()
        assert sum(map(len, blocks)) < 10 * RATE


def test_passed_file_stays_open() -> None:
    file = BytesIO(wav(pcm(TONE), RATE))
    with open_sound(file) as sound:
        assert sound.seconds == pytest.approx(1)
    assert not file.closed


_PEAK = """
import resource, sys
from worker.local.emulator.engines.base import AudioFormat
from worker.local.sound import SoundSource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

sizes = []
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        sound = SoundSource(file, name)
        sizes.append(sum(map(len, sound.encode(AudioFormat("pcm_s16le", 16_000)))))
    sizes.append(peak())
print(*sizes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_is_independent_of_length(tmp_path: Path) -> None:
    second = pcm(np.stack([tone(44_100)] * 2))
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    short.write_bytes(wav(second, 44_100, channels=2))
    with long.open("wb") as file:
        file.write(wav(b"", 44_100, channels=2, length=600 * len(second))[:44])
        for _ in range(600):
            file.write(second)
    arguments = [sys.executable, "-c", _PEAK, str(short), str(long)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    _, before, size, after = map(int, done.stdout.split())
    assert size == 600 * 32_000
    assert after - before < 16  # MiB; the whole file would need 200


def test_first_samples_need_small_part_of_file(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(wav(pcm(np.stack([tone(44_100, 60.0)] * 2)), 44_100, channels=2))
    with path.open("rb") as file, open_sound(file) as sound:
        assert len(next(sound.blocks(44_100)))
        assert file.tell() < path.stat().st_size // 10
