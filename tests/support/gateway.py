"""Gateways as processes, and the producers that connect to them."""

import base64
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import anyio
from anyio.abc import Process
from websockets.asyncio.client import ClientConnection, connect

from schemas import Encoding
from tests.support.acl import as_user
from tests.support.harness import Harness
from tests.support.polling import eventually
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.process import spawn

MULAW = AudioFormat(Encoding.PCM_MULAW, 8_000)
FRAME_MS = 20


class GatewayProcess:
    """A running `turnbus ingest`."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    @property
    def url(self) -> str:
        """WebSocket URL without a path."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def audiosocket_port(self) -> int:
        """Port of AudioSocket."""
        found = re.search(r"AudioSocket on \S+:(\d+)", self.text())
        assert found is not None
        return int(found[1])

    def text(self) -> str:
        """Return the log."""
        return self.log.read_text("utf-8")

    async def logged(self, line: str) -> None:
        """Wait until a line is logged."""
        await eventually(lambda: line in self.text(), f"{line!r} in the log of the gateway")


@asynccontextmanager
async def gateway(
    harness: Harness, log: Path, *options: str, redis_url: str | None = None, **settings: str
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway on a free port, and kill it if it still runs at the end."""
    url = redis_url or as_user(harness.redis_url, "ingest")
    async with gateway_at(url, harness.prefix, log, *options, **settings) as started:
        yield started


@asynccontextmanager
async def gateway_at(
    redis_url: str, prefix: str, log: Path, *options: str, **settings: str
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway on a free port for any Redis, and kill it if it still runs at the end.

    It ends with this process, too.
    """
    env = {
        **os.environ,
        "TURNBUS_REDIS_URL": redis_url,
        "TURNBUS_PREFIX": prefix,
        **{f"TURNBUS_INGEST_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "worker", "ingest", "--listen", "127.0.0.1:0", *options]
    with log.open("wb") as output:
        number = output.fileno()
        process, leash = await spawn(command, stdout=number, stderr=number, env=env)
    async with process:
        started = GatewayProcess(process, log)
        try:
            await started.logged("listening on http://")
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", started.text())
            assert found is not None
            started.port = int(found[1])
            yield started
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                await process.wait()
            leash.release()


def raw_url(ingest: GatewayProcess, session: str, **query: str) -> str:
    """Return the URL of a raw client."""
    return f"{ingest.url}/raw?{urlencode({'session': session, **query})}"


def speech(
    turns: int, audio: AudioFormat = MULAW, *, first: int = 0, pause_ms: float = 900
) -> bytes:
    """Return turns of three words, numbered from `first` on."""
    return b"".join(
        synthesize_words(range(at, at + 3), audio) + synthesize_silence(pause_ms, audio)
        for at in range(first, first + 3 * turns, 3)
    )


def frames(sound: bytes, audio: AudioFormat = MULAW) -> Sequence[bytes]:
    """Return a sound in frames of 20 ms, as carriers send it."""
    size = audio.sample_rate * FRAME_MS // 1000 * Encoding(audio.encoding).width
    return [sound[at : at + size] for at in range(0, len(sound), size)]


class TwilioCall:
    """The messages of one Media Stream, in the order of Twilio's documentation."""

    def __init__(self, stream: str, tracks: Sequence[str] = ("inbound",)) -> None:
        self.stream = stream
        self.call = f"CA{stream}"
        self.tracks = tracks
        self._numbers = dict.fromkeys(tracks, 0)

    def start(self) -> Iterator[str]:
        """Yield the messages before the audio."""
        yield json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {
            "accountSid": "AC1",
            "streamSid": self.stream,
            "callSid": self.call,
            "tracks": self.tracks,
            "mediaFormat": form,
            "customParameters": {"caller": "+15550100"},
        }
        yield self._message("start", start)

    def media(self, payload: bytes, track: str = "inbound") -> str:
        """Return the message of a frame."""
        self._numbers[track] += 1
        number = self._numbers[track]
        media = {
            "track": track,
            "chunk": str(number),
            "timestamp": str((number - 1) * FRAME_MS),
            "payload": base64.b64encode(payload).decode(),
        }
        return self._message("media", media)

    def dtmf(self, digit: str) -> str:
        """Return the message of a key."""
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def stop(self) -> str:
        """Return the last message."""
        return self._message("stop", {"accountSid": "AC1", "callSid": self.call})

    def _message(self, event: str, content: object) -> str:
        return json.dumps({"event": event, event: content, "streamSid": self.stream})

    async def play_all(self, socket: ClientConnection, sound: bytes) -> None:
        """Send a sound in real time, and end the call."""
        await self.play(socket, sound)
        await socket.send(self.stop())

    async def play(self, socket: ClientConnection, sound: bytes, track: str = "inbound") -> None:
        """Send a sound in real time."""
        for frame in frames(sound):
            await socket.send(self.media(frame, track))
            await anyio.sleep(FRAME_MS / 1000)


@asynccontextmanager
async def dial(url: str, call: TwilioCall) -> AsyncIterator[ClientConnection]:
    """Connect as Twilio, up to the first frame."""
    async with connect(f"{url}/twilio", proxy=None) as socket:
        for message in call.start():
            await socket.send(message)
        yield socket
