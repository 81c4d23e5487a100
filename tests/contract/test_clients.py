"""Published clients of the endpoint, unmodified: complete sessions against the local server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.contract.wire import Event, serving
from tests.peers.environment import PUBLISHED
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

SDK, LIVEKIT, PIPECAT = (client.requirement for client in PUBLISHED)

WIDE = AudioFormat("pcm_s16le", 16_000)


def session(line: AudioFormat) -> bytes:
    """Two turns: w1 w2, a pause, w3; and w4, which ends only when the client closes."""
    return (
        synthesize_words([1, 2], line)
        + synthesize_silence(300, line)
        + synthesize_words([3], line)
        + synthesize_silence(600, line)
        + synthesize_words([4], line)
    )


async def run(python: Path, client: str, *arguments: str, audio: bytes) -> list[Any]:
    """Return what a client prints after it played this audio."""
    script = Path(__file__).with_name(client)
    with anyio.fail_after(120):
        done = await anyio.run_process(
            [str(python), "-I", str(script), *arguments], input=audio, stderr=None
        )
    return [json.loads(row) for row in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def sdk_python(client_python: Callable[[str], Path]) -> Path:
    return client_python(SDK)


async def play_sdk(
    python: Path, server: TurnsServer, line: AudioFormat, audio: bytes, model: str = "ink-2"
) -> list[Event]:
    """Return what the official SDK reports to its user."""
    arguments = [server.base_url, line.encoding, str(line.sample_rate), model]
    return await run(python, "sdk_client.py", *arguments, audio=audio)


@pytest.mark.parametrize("line", [WIDE, AudioFormat("pcm_mulaw", 8000)])
async def test_14_sdk_session_yields_its_turns(sdk_python: Path, line: AudioFormat) -> None:
    audio = session(line)
    async with serving() as server:
        *events, end = await play_sdk(sdk_python, server, line, audio)
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


async def test_14_sdk_wrong_model_gets_error_event_and_1008(sdk_python: Path) -> None:
    async with serving() as server:
        error, end = await play_sdk(sdk_python, server, WIDE, b"", model="ink-whisper")
    assert (error["type"], error["error_code"]) == ("error", "model_not_found")
    assert end == {"type": "closed", "code": 1008, "reason": "Invalid model"}


async def test_14_sdk_refused_key_gets_http_401_with_body(sdk_python: Path) -> None:
    strict = ServerSettings(port=0, api_keys=frozenset({"sk_car_other"}))
    async with serving(strict) as server:
        (refused,) = await play_sdk(sdk_python, server, WIDE, b"")
    assert (refused["type"], refused["status"]) == ("refused", 401)
    assert refused["body"]["title"] == "Unauthorized"


async def test_14_livekit_session_yields_its_turns(client_python: Callable[[str], Path]) -> None:
    python = client_python(LIVEKIT)
    async with serving() as server:
        messages = await run(
            python, "livekit_client.py", server.base_url, "16000", audio=session(WIDE)
        )
        (seen,) = server.connections
    usage = ["recognition_usage", None]  # sent every 5 s, wherever the session is by then
    assert usage in messages
    assert [each for each in messages if each != usage] == [
        ["start_of_speech", None],
        ["interim_transcript", "w1"],
        ["interim_transcript", "w1 w2"],
        ["preflight_transcript", "w1 w2"],
        ["interim_transcript", "w1 w2"],  # LiveKit's name for turn.resume
        ["interim_transcript", "w1 w2 w3"],
        ["preflight_transcript", "w1 w2 w3"],
        ["final_transcript", "w1 w2 w3"],
        ["end_of_speech", None],
        ["start_of_speech", None],
        ["interim_transcript", " w4"],
        ["final_transcript", " w4"],
        ["end_of_speech", None],
    ]
    assert (seen.audio_bytes, seen.close_code) == (len(session(WIDE)), 1000)
    assert seen.params is not None
    assert (seen.params.audio, seen.params.keyterms) == (WIDE, ("Ink 2",))


async def test_14_pipecat_session_yields_its_turns(client_python: Callable[[str], Path]) -> None:
    python = client_python(PIPECAT)
    async with serving() as server:
        messages = await run(python, "pipecat_client.py", server.url, "16000", audio=session(WIDE))
        (seen,) = server.connections
    assert messages == [
        ["ProposedUserStartedSpeakingFrame", None],
        ["InterimTranscriptionFrame", "w1"],
        ["InterimTranscriptionFrame", "w1 w2"],
        ["EagerTranscriptionFrame", "w1 w2"],
        ["EagerEndOfTurnCancelFrame", None],
        ["InterimTranscriptionFrame", "w1 w2 w3"],
        ["EagerTranscriptionFrame", "w1 w2 w3"],
        ["TranscriptionFrame", "w1 w2 w3"],
        ["ProposedUserStoppedSpeakingFrame", None],
        ["ProposedUserStartedSpeakingFrame", None],
        ["InterimTranscriptionFrame", " w4"],
        ["TranscriptionFrame", " w4"],
        ["ProposedUserStoppedSpeakingFrame", None],
    ]
    assert seen.close_code == 1000
    assert seen.params is not None
    assert (seen.params.audio, seen.params.keyterms) == (WIDE, ("Ink 2",))
