"""The sessions of the demo, and how their audio is played."""

import os
import re
from io import BytesIO
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio import to_thread

from schemas import Encoding
from tests.support.sounds import encoded, pcm, wav
from worker.errors import SettingsError
from worker.local.demo.sessions import DemoSession, bundled, of_files
from worker.local.demo.speech_ends import SpeechEnds
from worker.local.emulator.engines.base import AudioFormat


def tone(seconds: float, volume: float, rate: int = 16_000) -> np.ndarray:
    return np.float32(volume) * np.sin(np.arange(int(seconds * rate)) / 5, dtype=np.float32)


async def chunks(role: DemoSession) -> list[bytes]:
    return [chunk async for chunk in role.chunks(pytest.fail)]


def speech_ends(audio: bytes, *, chunk: int = 3_200) -> list[float]:
    listener = SpeechEnds(AudioFormat("pcm_s16le", 16_000))
    for at in range(0, len(audio), chunk):
        listener.add(audio[at : at + chunk])
    return listener.ends()


async def test_bundled_sessions() -> None:
    cast = bundled(None)
    assert len(cast) == 6
    assert len({role.session for role in cast}) == 6
    assert len({role.speaker for role in cast}) >= 4
    assert {role.line.encoding for role in cast} == {Encoding.PCM_S16LE, Encoding.PCM_MULAW}
    assert [role.enters_s for role in cast] == sorted({role.enters_s for role in cast})
    for role in cast:
        assert role.text
        assert 20 <= role.line.chunk_ms <= 100
        audio = await chunks(role)
        size = role.line.sample_rate * role.line.chunk_ms // 1000 * role.line.encoding.width
        assert {len(chunk) for chunk in audio[:-1]} == {size}
        seconds = len(b"".join(audio)) / role.line.encoding.width / role.line.sample_rate
        assert role.seconds == pytest.approx(seconds, abs=0.01)
        listener = SpeechEnds(role.line.format)
        for chunk in audio:
            listener.add(chunk)
        assert listener.ends()
        assert listener.ends()[-1] < seconds - 1


async def test_damaged_file_is_reported(tmp_path: Path) -> None:
    target = BytesIO()
    encoded(target, tone(2.0, 0.5, 48_000), 48_000, "libmp3lame", container="mp3")
    data = bytearray(target.getvalue())
    for at in range(len(data) // 3, len(data) // 2, 40):
        data[at] ^= 0x55
    (tmp_path / "call.mp3").write_bytes(data)
    (role,) = of_files([tmp_path / "call.mp3"], None)
    warnings: list[str] = []
    async for _ in role.chunks(warnings.append):
        pass
    (warning,) = warnings
    assert re.fullmatch(r".*call\.mp3 is damaged: \d+ packets? could not be decoded", warning)


def test_sessions_start_after_each_other() -> None:
    assert [role.enters_s for role in bundled(3)] == pytest.approx([0.0, 1.6, 3.2])
    assert [role.enters_s for role in bundled(3, 3.6)] == pytest.approx([0.0, 3.6, 7.2])


def test_clips_are_reused_under_other_names() -> None:
    names = [role.session for role in bundled(8)]
    assert names[6:] == [f"{names[0]}-2", f"{names[1]}-2"]
    assert len(bundled(1)) == 1


def test_speech_ends_where_energy_drops() -> None:
    noise = tone(0.5, 0.001)
    samples = [noise, tone(1.0, 0.5), tone(0.2, 0.001), tone(0.4, 0.3), noise, tone(0.04, 0.5)]
    played = pcm(np.concatenate([*samples, noise]))
    # A gap of 0.2 s is no end; a click of 0.04 s is no speech.
    assert speech_ends(played) == [pytest.approx(2.1, abs=0.02)]
    assert speech_ends(played, chunk=101) == speech_ends(played)
    assert speech_ends(bytes(32_000)) == []
    assert speech_ends(bytes(20)) == []


def test_speech_ends_keep_their_place_in_long_audio() -> None:
    minute = pcm(np.concatenate([tone(1.0, 0.5), tone(59.0, 0.001)]))
    assert speech_ends(3 * minute) == [pytest.approx(121.0, abs=0.02)]


def test_own_files_are_played(tmp_path: Path) -> None:
    first, second = tmp_path / "my call.wav", tmp_path / "b.flac"
    first.write_bytes(wav(pcm(np.stack([tone(1.0, 0.5, 8_000)] * 2)), 8_000, channels=2))
    encoded(second, tone(0.5, 0.5, 44_100), 44_100, "flac")
    cast = of_files([first, second], None)
    assert [role.session for role in cast] == ["my-call", "b"]
    assert [role.speaker for role in cast] == ["my call.wav", "b.flac"]
    assert {role.text for role in cast} == {None}
    assert [role.seconds for role in cast] == [pytest.approx(2.6), pytest.approx(2.1)]
    assert [role.session for role in of_files([first], 2)] == ["my-call", "my-call-2"]


def test_every_unusable_file_is_reported(tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no sound")
    with pytest.raises(SettingsError) as error:
        of_files([tmp_path / "none.wav", noise, tmp_path], None)
    missing, unreadable, directory = error.value.problems
    assert missing.endswith("none.wav: cannot be read: No such file or directory")
    assert "noise.wav is not a sound file" in unreadable
    assert directory.endswith("cannot be read: Is a directory")


async def test_pipe_plays_once(tmp_path: Path) -> None:
    path = tmp_path / "fifo.wav"
    os.mkfifo(path)
    data = wav(pcm(tone(0.5, 0.5)), 16_000)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, path.write_bytes, data)
        (role,) = await to_thread.run_sync(of_files, [path], None)
        assert role.seconds is role.leaves_s is None
        audio = b"".join(await chunks(role))
    assert len(audio) / 32_000 == pytest.approx(2.1)
    held = os.open(path, os.O_RDWR)
    with pytest.raises(SettingsError, match="is a pipe and can be played only once"):
        of_files([path], 2)
    os.close(held)


async def test_raw_audio_is_played_at_16_khz(tmp_path: Path) -> None:
    path = tmp_path / "call.raw"
    path.write_bytes(pcm(tone(0.5, 0.5)))
    (role,) = of_files([path], None)
    assert b"".join(await chunks(role)).startswith(path.read_bytes())
