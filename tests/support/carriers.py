"""Carriers, message by message as their documents give them, and what a gateway makes of them."""

import base64
import json
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
from anyio.abc import SocketStream
from websockets.client import ClientProtocol
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from schemas import SessionEntry
from schemas.audio import AudioEntry, decode_audio, decode_session
from tests.support.gateway import FRAME_MS, GatewayProcess
from tests.support.harness import Harness
from tests.support.polling import eventually

Message = str | bytes

LEFT_BEHIND = ["sessions", "{*}:audio:*", "{*}:producer:*"]
"""Patterns of the keys that a gateway leaves where no worker ends the sessions."""


def noise(size: int, seed: int = 0) -> bytes:
    """Return random bytes: audio in which no two parts are equal."""
    return random.Random(seed).randbytes(size)


class Carried(NamedTuple):
    """One session as Redis holds it."""

    announced: SessionEntry
    entries: Sequence[AudioEntry]

    @property
    def audio(self) -> bytes:
        """The audio of all entries."""
        return b"".join(entry.audio for entry in self.entries)

    @property
    def marks(self) -> list[tuple[int, dict[str, Any]]]:
        """Each mark, with the number of audio bytes before it."""
        found, before = [], 0
        for entry in self.entries:
            before += len(entry.audio)
            if entry.mark is not None:
                found.append((before, entry.mark))
        return found


async def carried(harness: Harness, session: str) -> Carried:
    """Return a session once its `end` is there; check what holds for all: numbers and source."""
    key = harness.audio_key(session)

    async def ended() -> Any:
        last: Any = await harness.redis.xrevrange(key, count=1)
        return last and b"end" in last[0][1]

    await eventually(ended, f"the end of session {session}")
    rows: Any = await harness.redis.xrange(f"{harness.prefix}:sessions")
    announced = [
        entry for _, fields in rows if (entry := decode_session(fields)).session == session
    ]
    assert len(announced) == 1
    rows = await harness.redis.xrange(key)
    *entries, end = [decode_audio(fields) for _, fields in rows]
    assert end.end
    assert not any(entry.end for entry in entries)
    numbered = [entry for entry in entries if entry.config is None]
    assert [entry.seq for entry in numbered] == list(range(len(numbered)))
    assert len({entry.src for entry in numbered}) == 1
    return Carried(announced[0], entries)


@asynccontextmanager
async def replay(
    ingest: GatewayProcess,
    path: str,
    messages: Sequence[Message],
    *,
    piece_bytes: int = 65_536,
    subprotocol: str | None = None,
    close: bool = False,
) -> AsyncIterator[str | None]:
    """Send messages over a WebSocket, and hold the connection during the block.

    Writes have at most `piece_bytes`, wherever that cuts a frame. With `close`, a close frame
    follows. Yields the subprotocol that the gateway chose.
    """
    offered = [Subprotocol(subprotocol)] if subprotocol else None
    protocol = ClientProtocol(parse_uri(f"{ingest.url}{path}"), subprotocols=offered)
    async with await anyio.connect_tcp("127.0.0.1", ingest.port) as stream:
        protocol.send_request(protocol.connect())
        await _flush(protocol, stream)
        while protocol.state is State.CONNECTING:
            protocol.receive_data(await stream.receive())
            if protocol.handshake_exc is not None:
                raise protocol.handshake_exc
        for message in messages:
            if isinstance(message, str):
                protocol.send_text(message.encode())
            else:
                protocol.send_binary(message)
        if close:
            protocol.send_close(CloseCode.NORMAL_CLOSURE)
        await _flush(protocol, stream, piece_bytes)
        yield protocol.subprotocol


async def _flush(protocol: ClientProtocol, stream: SocketStream, piece_bytes: int = 65_536) -> None:
    await send_in_pieces(stream, b"".join(protocol.data_to_send()), piece_bytes)


async def send_in_pieces(stream: SocketStream, data: bytes, piece_bytes: int) -> None:
    """Send bytes in writes of at most `piece_bytes`."""
    for at in range(0, len(data), piece_bytes):
        await stream.send(data[at : at + piece_bytes])


class TwilioStream:
    """The messages of one Media Stream with all fields of Twilio's documentation."""

    def __init__(self, stream: str, *tracks: str) -> None:
        self.stream = stream
        self.call = f"CA{stream.removeprefix('MZ')}"
        self.tracks = tracks or ("inbound",)
        self._sequence = 0
        self._chunks = dict.fromkeys(self.tracks, 0)

    def opening(self, **parameters: str) -> Iterator[str]:
        """Yield the messages before the audio."""
        yield '{"event":"connected","protocol":"Call","version":"1.0.0"}'
        about = {
            "accountSid": "AC0123456789abcdef0123456789abcdef",
            "streamSid": self.stream,
            "callSid": self.call,
            "tracks": self.tracks,
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        }
        yield self._message("start", about)

    def media(self, payload: bytes, track: str = "inbound") -> str:
        """Return the message of a frame of 20 ms."""
        self._chunks[track] += 1
        chunk = self._chunks[track]
        about = {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str(5 + FRAME_MS * (chunk - 1)),
            "payload": base64.b64encode(payload).decode(),
        }
        return self._message("media", about)

    def dtmf(self, digit: str) -> str:
        """Return the message of a key of a two-way stream."""
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> str:
        """Return the message that a mark of the server was played."""
        return self._message("mark", {"name": name})

    def stop(self) -> str:
        """Return the last message."""
        about = {"accountSid": "AC0123456789abcdef0123456789abcdef", "callSid": self.call}
        return self._message("stop", about)

    def _message(self, event: str, about: object) -> str:
        self._sequence += 1
        number = str(self._sequence)
        message = {"event": event, "sequenceNumber": number, event: about}
        return json.dumps({**message, "streamSid": self.stream}, separators=(",", ":"))
