"""Reading sound files and encoding them for the wire."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from worker.local import sound
from worker.local.engines.base import AudioFormat
from worker.local.engines.pcm import ENCODINGS, PcmDecoder
from worker.local.sound import Sound


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    at = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("wav", "ULAW"), ("flac", "PCM_16")],
)
def test_read(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(22_050), 22_050, subtype=subtype)
    read = sound.read(path)
    assert read.rate == 22_050
    assert read.seconds == pytest.approx(0.5)
    assert read.samples.dtype == np.float32
    np.testing.assert_allclose(read.samples, tone(22_050), atol=0.02)


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = tone(8_000), np.zeros(4_000, np.float32)
    soundfile.write(path, np.column_stack((left, right)), 8_000, subtype="FLOAT")
    np.testing.assert_allclose(sound.read(path).samples, left / 2, atol=1e-6)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sound.read(tmp_path / "missing.wav")
    text = tmp_path / "text.wav"
    text.write_text("not a sound")
    with pytest.raises(ValueError, match="is not a sound file"):
        sound.read(text)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.float32), 8_000)
    with pytest.raises(ValueError, match="holds no audio"):
        sound.read(empty)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_encode(encoding: str, rate: int) -> None:
    audio = AudioFormat(encoding, rate)
    heard = PcmDecoder(audio).decode(Sound(tone(16_000), 16_000).encode(audio))
    assert len(heard) == rate // 2
    inner = slice(rate // 20, -rate // 20)  # resampling rings at the ends
    np.testing.assert_allclose(heard[inner], tone(rate)[inner], atol=0.02)


def test_same_rate_is_the_same_sound() -> None:
    same = Sound(tone(16_000), 16_000)
    assert same.resample(16_000) is same
