"""`turnbus push`: the entries it writes are those a worker reads."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from redis import Redis

from schemas import AudioEntry, Encoding, Keys, SessionEntry, decode_audio, decode_session
from tests.support.acl import GuardedRedis, as_user
from tests.support.polling import PATIENCE_S
from tests.support.processes import until
from tests.support.sounds import encoded, pcm, tone
from tests.support.sounds import wav as wav_file
from worker.cli.main import main
from worker.local import audio_input

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def leftovers(expected_leftovers: list[str]) -> None:
    expected_leftovers += ["sessions", "{*}:audio:*"]


@pytest.fixture
def redis_user() -> str:
    """Return the producer's user; `push` needs no other rights."""
    return "producer"


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """350 ms of stereo at 8 kHz."""
    path = tmp_path / "call.wav"
    one = tone(8_000, 0.35)
    path.write_bytes(wav_file(pcm(np.stack([one, one])), 8_000, channels=2))
    return path


def announced(bus: Redis, keys: Keys) -> list[SessionEntry]:
    entries: Any = bus.xrange(keys.sessions)
    return [decode_session(fields) for _, fields in entries]


def appended(bus: Redis, stream: str) -> list[AudioEntry]:
    entries: Any = bus.xrange(stream)
    return [decode_audio(fields) for _, fields in entries]


def test_push_splits_file_into_chunks(
    wav: Path, bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(wav), "--session", "s", "--speed", "0"]) == 0
    assert announced(bus, keys) == [
        SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=16_000)
    ]
    *chunks, end = appended(bus, keys.audio("0", "s"))
    assert [len(chunk.audio) for chunk in chunks] == [3_200, 3_200, 3_200, 1_600]
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert len({chunk.src for chunk in chunks}) == 1
    assert end == AudioEntry(end=True)
    assert capsys.readouterr().out == "s: 0.3 s in 4 chunks\n"


def test_push_sets_every_session_field(
    wav: Path, bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--session s --lane eu --out session --encoding pcm_mulaw --sample-rate 8000"
    options += " --chunk-ms 20 --speed 100 --json --provider flux --model flux-general-multi"
    options += " --language de-CH"
    assert main(["push", str(wav), *options.split(), "--metadata", '{"from": "x"}']) == 0
    assert announced(bus, keys) == [
        SessionEntry(
            session="s",
            encoding=Encoding.PCM_MULAW,
            sample_rate=8_000,
            lane="eu",
            out="session",
            provider="flux",
            model="flux-general-multi",
            language="de-CH",
            metadata={"from": "x"},
        )
    ]
    *chunks, _ = appended(bus, keys.audio("eu", "s"))
    assert [len(chunk.audio) for chunk in chunks] == [160] * 17 + [80]
    entries: Any = bus.xrange(keys.sessions)
    run = entries[0][0].decode()
    expected = f'{{"session":"s","run":"{run}","chunks":18,"audio_ms":350}}\n'
    assert capsys.readouterr().out == expected


def test_push_uses_own_src_per_process(wav: Path, bus: Redis, keys: Keys) -> None:
    for session in ("a", "b"):
        assert main(["push", str(wav), "--session", session, "--speed", "0"]) == 0
    first, second = (appended(bus, keys.audio("0", session))[0].src for session in ("a", "b"))
    assert first != second


def test_push_sends_raw_pipe_byte_for_byte(spawn: Spawn, bus: Redis, keys: Keys) -> None:
    audio = np.arange(5_001, dtype="<i2").tobytes() + b"\x01"
    push = spawn("push", "-", "--session", "s", "--speed", "0", stdin=subprocess.PIPE)
    push.communicate(audio, timeout=PATIENCE_S)
    assert push.returncode == 0
    *chunks, end = appended(bus, keys.audio("0", "s"))
    assert b"".join(chunk.audio for chunk in chunks) == audio
    assert {len(chunk.audio) for chunk in chunks[:-1]} == {3_200}
    assert end.end


def test_push_without_audio_announces_nothing(
    spawn: Spawn, bus: Redis, keys: Keys, tmp_path: Path
) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        push = spawn("push", "-", "--session", "s", stdin=subprocess.DEVNULL, stderr=errors)
        assert push.wait(PATIENCE_S) == 1
    message = (tmp_path / "errors").read_text()
    assert message == "turnbus: received no audio; no session was announced\n"
    assert not bus.exists(keys.sessions, keys.audio("0", "s"))


def test_push_signalled_before_audio_announces_nothing(
    spawn: Spawn, bus: Redis, keys: Keys
) -> None:
    push = spawn("push", "-", "--session", "s", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    until(lambda: any(each["cmd"] == "ping" for each in bus.client_list()), push, "it connects")
    push.send_signal(signal.SIGINT)
    assert push.wait(PATIENCE_S) == 130
    assert push.stdout is not None
    assert push.stdout.read() == b""
    assert not bus.exists(keys.sessions)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_push_ends_session_on_signal(
    spawn: Spawn, bus: Redis, keys: Keys, number: int, code: int
) -> None:
    push = spawn("push", "-", "--session", "s", stdin=subprocess.PIPE)
    assert push.stdin is not None
    push.stdin.write(bytes(3_200))
    push.stdin.flush()
    until(lambda: bus.exists(keys.audio("0", "s")), push, "it appends audio")
    push.send_signal(number)
    assert push.wait(PATIENCE_S) == code
    assert [entry.end for entry in appended(bus, keys.audio("0", "s"))] == [False, True]


def test_push_signalled_in_outage_prints_end_command(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = GuardedRedis.start()
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(start) as server,
        (tmp_path / "errors").open("wb") as errors,
    ):
        monkeypatch.setenv("TURNBUS_REDIS_URL", as_user(server.url, "producer"))
        push = spawn("push", "-", "--session", "s", stdin=subprocess.PIPE, stderr=errors)
        assert push.stdin is not None
        push.stdin.write(bytes(3_200))
        push.stdin.flush()
        with Redis.from_url(server.url) as bus:
            until(lambda: bus.exists("stt:{0}:audio:s"), push, "it appends audio")
        portal.call(server.kill)
        push.send_signal(signal.SIGTERM)
        assert push.wait(PATIENCE_S) == 143
    assert "XADD stt:{0}:audio:s * end 1" in (tmp_path / "errors").read_text()


def test_push_refuses_ended_session(
    wav: Path, bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.set(keys.audio("0", "s"), b"ended")
    assert main(["push", str(wav), "--session", "s", "--speed", "0"]) == 1
    assert capsys.readouterr().err == "turnbus: session s has ended: it takes no more audio\n"


RAW = pcm(tone(16_000, 0.35))
WAV = wav_file(RAW, 16_000)


def compressed(codec: str, container: str, rate: int = 48_000) -> bytes:
    target = BytesIO()
    encoded(target, tone(rate, 2.0), rate, codec, container=container)
    return target.getvalue()


def audio_of(bus: Redis, keys: Keys, session: str = "s") -> bytes:
    *chunks, end = appended(bus, keys.audio("0", session))
    assert end.end
    return b"".join(chunk.audio for chunk in chunks)


@pytest.mark.parametrize("name", ["call.raw", "CALL.PCM"])
def test_push_detects_raw_audio_by_extension(
    tmp_path: Path, bus: Redis, keys: Keys, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(RAW + b"\x01")
    assert main(["push", str(path), "--session", "s", "--speed", "0"]) == 0
    assert audio_of(bus, keys) == RAW + b"\x01"


def test_push_detects_sound_file_by_content(tmp_path: Path, bus: Redis, keys: Keys) -> None:
    path = tmp_path / "call.raw"
    path.write_bytes(WAV)
    assert main(["push", str(path), "--session", "s", "--speed", "0"]) == 0
    assert audio_of(bus, keys) == RAW


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("flac", "flac"),
        ("libmp3lame", "mp3"),
        ("aac", "adts"),
        ("libopus", "ogg"),
        ("libopus", "webm"),
        ("pcm_s16le", "wav"),
    ],
)
def test_push_detects_sound_file_on_stdin(
    spawn: Spawn, bus: Redis, keys: Keys, codec: str, container: str
) -> None:
    push = spawn("push", "-", "--session", "s", "--speed", "0", stdin=subprocess.PIPE)
    push.communicate(compressed(codec, container), timeout=PATIENCE_S)
    assert push.returncode == 0
    assert len(audio_of(bus, keys)) / 32_000 == pytest.approx(2.0, abs=0.1)


def test_push_seeks_in_redirected_stdin(
    spawn: Spawn, bus: Redis, keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "call.m4a"
    path.write_bytes(compressed("aac", "ipod"))  # its index is at the end, so push has to seek
    with path.open("rb") as file:
        push = spawn("push", "-", "--session", "s", "--speed", "0", stdin=file)
        assert push.wait(PATIENCE_S) == 0
    assert len(audio_of(bus, keys)) / 32_000 == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", ["fifo.wav", "fifo.raw"])
def test_push_reads_named_pipe(
    spawn: Spawn, bus: Redis, keys: Keys, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    push = spawn("push", str(path), "--session", "s", "--speed", "0")
    path.write_bytes(WAV if name.endswith("wav") else RAW)
    assert push.wait(PATIENCE_S) == 0
    assert audio_of(bus, keys) == RAW


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_push_stops_waiting_for_sound_file_on_signal(
    spawn: Spawn, bus: Redis, keys: Keys, number: int
) -> None:
    push = spawn("push", "-", "--session", "s", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert push.stdin is not None
    push.stdin.write(wav_file(b"", 16_000)[:40])  # FFmpeg waits for more in its thread
    push.stdin.flush()
    until(lambda: any(each["cmd"] == "ping" for each in bus.client_list()), push, "it connects")
    push.send_signal(number)
    assert push.wait(PATIENCE_S) == 128 + number
    assert push.stderr is not None
    assert push.stderr.read() == b""
    assert not bus.exists(keys.sessions)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_push_ends_session_of_stalled_file_on_signal(
    spawn: Spawn, bus: Redis, keys: Keys, number: int
) -> None:
    push = spawn("push", "-", "--session", "s", "--speed", "0", stdin=subprocess.PIPE)
    assert push.stdin is not None
    data = wav_file(pcm(tone(16_000, 20.0)), 16_000)
    push.stdin.write(data[:-200_000])
    push.stdin.flush()
    until(lambda: bus.exists(keys.audio("0", "s")), push, "it appends audio")
    push.send_signal(number)
    assert push.wait(PATIENCE_S) == 128 + number
    assert audio_of(bus, keys)


def test_push_ends_session_of_truncated_file(
    bus: Redis,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(wav_file(pcm(tone(16_000, 20.0)), 16_000))

    class Failing(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 300_000:
                raise OSError(5, "Input/output error")
            return super().read(size) or b""

    monkeypatch.setattr(audio_input, "_open", lambda named: Failing(named, "rb"))
    assert main(["push", str(path), "--session", "s", "--speed", "0"]) == 1
    assert capsys.readouterr().err == f"turnbus: {path}: cannot be read: Input/output error\n"
    assert 200_000 < len(audio_of(bus, keys)) < 330_000


def test_push_reports_damaged_packets(
    tmp_path: Path, bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(compressed("libmp3lame", "mp3"))
    for at in range(len(data) // 3, len(data) // 2, 40):
        data[at] ^= 0x55
    path = tmp_path / "call.mp3"
    path.write_bytes(data)
    assert main(["push", str(path), "--session", "s", "--speed", "0"]) == 0
    assert audio_of(bus, keys)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"turnbus: .*call\.mp3 is damaged: \d+ packets? could not be decoded", line)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read: No such file"),
        (b"no sound" * 100, "is not a sound file that can be read; if it is raw audio, pcm_s16le "),
        (b"", "holds no audio: it is empty"),
        (wav_file(RAW, 1), "has a sample rate of 1 Hz"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is damaged, or of an unknown kind"),
    ],
)
def test_push_refuses_unplayable_file(
    tmp_path: Path, content: bytes | None, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "call.wav"
    if content is not None:
        path.write_bytes(content)
    assert main(["push", str(path), "--session", "s"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("name", [".", "call.raw"])
def test_push_refuses_directory(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.mkdir(exist_ok=True)
    assert main(["push", str(path), "--session", "s"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cannot be read: Is a directory")


def test_push_refuses_stdin_without_sound(spawn: Spawn, bus: Redis, keys: Keys) -> None:
    push = spawn("push", "-", "--session", "s", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = push.communicate(b"<!DOCTYPE html><html>not found</html>", timeout=PATIENCE_S)
    assert push.returncode == 2
    assert errors.startswith(b"turnbus: standard input is not a sound file that can be read")
    assert len(errors.splitlines()) == 1
    assert not bus.exists(keys.sessions)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("", "required: --session"),
        ("--session a/b", "--session: must be 1 to 128 of"),
        ("--session s --encoding mp3", "--encoding: "),
        (
            "--session s --sample-rate 100",
            "--sample-rate: must be a whole number from 8000 to 192000",
        ),
        ("--session s --chunk-ms 1000", "--chunk-ms: must be a whole number from 5 to 300"),
        ("--session s --speed -1", "--speed: must be a number from 0 to 1000"),
        ("--session s --speed 1001", "--speed: must be a number from 0 to 1000"),
        ("--session s --lane {0}", "--lane: must be 1 to 32 of"),
        ("--session s --out both", "--out: must be one of lane, session"),
        ("--session s --metadata []", "--metadata: must be a JSON object"),
        (f'--session s --metadata {{"a":"{"x" * 4_096}"}}', "--metadata: is over 4096 bytes"),
        (f"--session s --metadata {'[' * 33}{']' * 33}", "--metadata: nests deeper than 32 levels"),
        (f"--session s --metadata {'[' * 9_999}", "--metadata: "),
        ("--session s --metadata \udcff", "--metadata: must be UTF-8 text"),
    ],
)
def test_push_refuses_bad_usage(
    options: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["push", "call.wav", *options.split()])
    assert end.value.code == 2
    assert what in capsys.readouterr().err
