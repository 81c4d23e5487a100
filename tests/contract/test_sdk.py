"""The official SDK, unmodified, completes sessions against the local server."""

import json
from pathlib import Path

import anyio
import pytest

from tests.contract.wire import Event, serving
from worker.local.engines.base import AudioFormat
from worker.local.engines.script import hush, say
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings

CLIENT = Path(__file__).with_name("sdk_client.py")


async def play(
    python: Path, server: TurnsServer, line: AudioFormat, audio: bytes, model: str = "ink-2"
) -> list[Event]:
    """What the SDK gives its user."""
    arguments = [server.base_url, line.encoding, str(line.sample_rate), model]
    done = await anyio.run_process(
        [str(python), "-I", str(CLIENT), *arguments], input=audio, stderr=None
    )
    return [json.loads(row) for row in done.stdout.splitlines()]


@pytest.mark.parametrize("line", [AudioFormat("pcm_s16le", 16000), AudioFormat("pcm_mulaw", 8000)])
async def test_a_session_gives_its_turns(sdk_python: Path, line: AudioFormat) -> None:
    audio = say([1, 2], line) + hush(300, line) + say([3], line) + hush(600, line) + say([4], line)
    async with serving() as server:
        *events, end = await play(sdk_python, server, line, audio)
        (seen,) = server.connections
    assert [(event["type"], event.get("transcript")) for event in events] == [
        ("connected", None),
        ("turn.start", None),
        ("turn.update", "w1"),
        ("turn.update", "w1 w2"),
        ("turn.eager_end", "w1 w2"),
        ("turn.resume", None),
        ("turn.update", "w1 w2 w3"),
        ("turn.eager_end", "w1 w2 w3"),
        ("turn.end", "w1 w2 w3"),
        ("turn.start", None),
        ("turn.update", " w4"),
        ("turn.end", " w4"),
    ]
    assert {event["request_id"] for event in events} == {seen.request_id}
    assert end == {"type": "closed"}
    assert seen.audio_bytes == len(audio)
    assert seen.params is not None
    assert seen.params.audio == line
    assert seen.params.keyterms == ("Ink 2", "caf\u00e9")
    assert (seen.params.turn.start, seen.params.turn.end_timeout_ms) == (0.85, 5600.0)


async def test_a_wrong_model_is_an_error_event_and_close_1008(sdk_python: Path) -> None:
    line = AudioFormat("pcm_s16le", 16000)
    async with serving() as server:
        error, end = await play(sdk_python, server, line, b"", model="ink-whisper")
    assert (error["type"], error["error_code"]) == ("error", "model_not_found")
    assert end == {"type": "closed", "code": 1008, "reason": "Invalid model"}


async def test_a_refused_key_is_an_http_401_with_a_body(sdk_python: Path) -> None:
    strict = ServerSettings(port=0, api_keys=frozenset({"sk_car_other"}))
    async with serving(strict) as server:
        (refused,) = await play(sdk_python, server, AudioFormat("pcm_s16le", 16000), b"")
    assert (refused["type"], refused["status"]) == ("refused", 401)
    assert refused["body"]["title"] == "Unauthorized"
