"""Who plays in the demo, and how their audio comes."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from schemas import Encoding
from worker.errors import SettingsError
from worker.local.demo.cast import bundled, of_files, speech_ends
from worker.local.sound import Sound


def tone(seconds: float, volume: float, rate: int = 16_000) -> np.ndarray:
    return np.float32(volume) * np.sin(np.arange(int(seconds * rate)) / 5, dtype=np.float32)


def test_the_bundled_cast() -> None:
    cast = bundled(None)
    assert len(cast) == 6
    assert len({role.session for role in cast}) == 6
    assert len({role.speaker for role in cast}) >= 4
    assert {role.line.encoding for role in cast} == {Encoding.PCM_S16LE, Encoding.PCM_MULAW}
    assert [role.enters_s for role in cast] == sorted({role.enters_s for role in cast})
    for role in cast:
        assert role.text
        assert 20 <= role.line.chunk_ms <= 100
        assert b"".join(role.chunks()) == role.audio
        assert role.speech_ends
        assert role.speech_ends[-1] < role.seconds - 1


def test_clips_are_used_again_under_other_names() -> None:
    names = [role.session for role in bundled(8)]
    assert names[6:] == [f"{names[0]}-2", f"{names[1]}-2"]
    assert len(bundled(1)) == 1


def test_speech_ends_where_energy_falls() -> None:
    noise = tone(0.5, 0.001)
    samples = [noise, tone(1.0, 0.5), tone(0.2, 0.001), tone(0.4, 0.3), noise, tone(0.04, 0.5)]
    played = Sound(np.concatenate([*samples, noise]), 16_000)
    # A gap of 0.2 s is no end, a click of 0.04 s no speech.
    assert speech_ends(played) == [pytest.approx(2.1, abs=0.02)]
    assert speech_ends(Sound(np.zeros(16_000, dtype=np.float32), 16_000)) == []
    assert speech_ends(Sound(np.zeros(10, dtype=np.float32), 16_000)) == []


def test_files_of_ones_own(tmp_path: Path) -> None:
    first, second = tmp_path / "my call.wav", tmp_path / "b.flac"
    soundfile.write(first, np.stack([tone(1.0, 0.5, 8_000)] * 2, axis=1), 8_000)
    soundfile.write(second, tone(0.5, 0.5, 44_100), 44_100)
    cast = of_files([first, second], None)
    assert [role.session for role in cast] == ["my-call", "b"]
    assert [role.speaker for role in cast] == ["my call.wav", "b.flac"]
    assert {role.text for role in cast} == {None}
    assert [role.seconds for role in cast] == [pytest.approx(2.6), pytest.approx(2.1)]
    assert [role.session for role in of_files([first], 2)] == ["my-call", "my-call-2"]


def test_every_file_at_fault_is_told(tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound")
    with pytest.raises(SettingsError) as error:
        of_files([tmp_path / "none.wav", noise, tmp_path], None)
    missing, unreadable, directory = error.value.faults
    assert missing.endswith("none.wav: cannot be read: No such file or directory")
    assert "noise.wav is not a sound file" in unreadable
    assert directory.endswith("cannot be read: Is a directory")
