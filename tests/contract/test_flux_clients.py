"""Published clients of Deepgram Flux, unmodified: complete sessions against the local server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_clients import WIDE, run, session
from tests.contract.wire import serving
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence
from worker.local.emulator.providers.flux_request import ENCODINGS
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

SDK = "deepgram-sdk==7.17.0"
LIVEKIT = "livekit-plugins-deepgram==1.8.9"
PIPECAT = "pipecat-ai[deepgram]==1.14.0"

FLUX = ServerSettings(port=0, provider="flux")
NAMES = {encoding.value: name for name, encoding in ENCODINGS.items()}


@pytest.fixture(scope="session")
def sdk_python(client_python: Callable[[str], Path]) -> Path:
    return client_python(SDK)


async def play_sdk(
    python: Path,
    server: TurnsServer,
    line: AudioFormat,
    audio: bytes,
    model: str = "flux-general-en",
) -> list[Any]:
    """Return what the official SDK reports to its user."""
    arguments = [server.base_url, NAMES[line.encoding], str(line.sample_rate), model]
    return await run(python, "flux_sdk_client.py", *arguments, audio=audio)


@pytest.mark.parametrize("line", [WIDE, AudioFormat("pcm_mulaw", 8000)])
async def test_sdk_session_yields_its_turns(sdk_python: Path, line: AudioFormat) -> None:
    audio = session(line)
    async with serving(FLUX) as server:
        *messages, end = await play_sdk(sdk_python, server, line, audio)
        (seen,) = server.connections
    assert [
        (message.get("event", message["type"]), message.get("transcript")) for message in messages
    ] == [
        ("Connected", None),
        ("StartOfTurn", "w1"),
        ("Update", "w1 w2"),
        ("EagerEndOfTurn", "w1 w2"),
        ("TurnResumed", "w1 w2"),
        ("Update", "w1 w2 w3"),
        ("EagerEndOfTurn", "w1 w2 w3"),
        ("EndOfTurn", "w1 w2 w3"),
        ("StartOfTurn", "w4"),
        ("ConfigureSuccess", None),
        ("EndOfTurn", "w4"),
        ("Warning", None),
    ]
    assert {message["request_id"] for message in messages} == {seen.request_id}
    ends = [message for message in messages if message.get("event") == "EndOfTurn"]
    assert [(end["turn_index"], end["trigger"]) for end in ends] == [(0, "model"), (1, "manual")]
    assert [(word["start"], word["end"]) for word in ends[0]["words"]] == [
        (0.0, 0.2),
        (0.2, 0.4),
        (0.7, 0.9),
    ]
    assert messages[9]["thresholds"] == {
        "eager_eot_threshold": 0.4,
        "eot_threshold": 0.75,
        "eot_timeout_ms": 6000,
    }
    assert end == {"type": "closed", "code": 1005}
    assert seen.audio_bytes == len(audio)
    assert list(seen.transcripts) == ["w1 w2 w3", "w4"]
    assert seen.params is not None
    assert (seen.params.audio, seen.params.keyterms) == (line, ("Ink 2", "caf\u00e9"))


async def test_sdk_refused_model_gets_http_403(sdk_python: Path) -> None:
    async with serving(FLUX) as server:
        refused = await play_sdk(sdk_python, server, WIDE, b"", model="nova-3")
    assert refused == [{"type": "refused", "status": 403}]


async def test_livekit_session_yields_its_turns(client_python: Callable[[str], Path]) -> None:
    python = client_python(LIVEKIT)
    async with serving(FLUX) as server:
        messages = await run(
            python, "flux_livekit_client.py", server.url, "16000", audio=session(WIDE)
        )
        (seen,) = server.connections
    usage = ["recognition_usage", None]  # sent every 5 s, wherever the session is by then
    assert [each for each in messages if each != usage] == [
        ["start_of_speech", None],
        ["interim_transcript", "w1"],
        ["interim_transcript", "w1 w2"],
        ["preflight_transcript", "w1 w2"],
        ["interim_transcript", "w1 w2"],  # LiveKit's name for TurnResumed
        ["interim_transcript", "w1 w2 w3"],
        ["preflight_transcript", "w1 w2 w3"],
        ["final_transcript", "w1 w2 w3"],
        ["end_of_speech", None],
        ["start_of_speech", None],
        ["interim_transcript", "w4"],  # `CloseStream` does not end the open turn
    ]
    assert (seen.audio_bytes, seen.open_transcript) == (len(session(WIDE)), "w4")
    assert seen.params is not None
    assert (seen.params.audio, seen.params.keyterms) == (WIDE, ("Ink 2",))


async def test_pipecat_session_yields_its_turns(client_python: Callable[[str], Path]) -> None:
    python = client_python(PIPECAT)
    audio = session(WIDE) + synthesize_silence(600, WIDE)
    async with serving(FLUX) as server:
        messages = await run(python, "flux_pipecat_client.py", server.url, "16000", audio=audio)
        (seen,) = server.connections
    assert messages == [
        ["ProposedUserStartedSpeakingFrame", None],
        ["InterimTranscriptionFrame", "w1 w2"],
        ["EagerTranscriptionFrame", "w1 w2"],
        ["EagerEndOfTurnCancelFrame", None],
        ["InterimTranscriptionFrame", "w1 w2 w3"],
        ["EagerTranscriptionFrame", "w1 w2 w3"],
        ["TranscriptionFrame", "w1 w2 w3"],
        ["ProposedUserStoppedSpeakingFrame", None],
        ["ProposedUserStartedSpeakingFrame", None],
        ["EagerTranscriptionFrame", "w4"],
        ["TranscriptionFrame", "w4"],
        ["ProposedUserStoppedSpeakingFrame", None],
    ]
    assert list(seen.transcripts) == ["w1 w2 w3", "w4"]
    assert seen.params is not None
    assert seen.params.keyterms == ("Ink 2",)
