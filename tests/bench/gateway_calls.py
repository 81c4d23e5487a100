"""A process that plays Twilio calls in real time: `python -m tests.bench.gateway_calls SHARE`.

It sends over blocking sockets, in the order in which the frames are due. That costs less than an
event loop, and it shows how late the process itself is.
"""

import base64
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

# The library's own masking function, in C if that was compiled.
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # isort: skip

FRAME_S: Final = 0.02
FRAME_BYTES: Final = 160
CHUNK_FRAMES: Final = 5

_WHOLE_TEXT: Final = 0x81
_MASKED: Final = 0x80
_MAX_SHORT: Final = 125
_TWO_BYTES: Final = 126


class Share(msgspec.Struct, frozen=True):
    """The calls of one process."""

    url: str
    calls: list[int]
    of: int
    """Calls of all processes: the phase of each call depends on it."""
    frames: int
    starts_at: float
    """Unix time of the first frame of call 0."""
    report: str
    """File for the result."""

    def due(self, call: int, frame: int) -> float:
        """Return the Unix time of a frame. The calls are spread over a chunk and over a frame."""
        return self.starts_at + FRAME_S * (frame + _first_tick(call) + call / self.of)

    def order(self) -> Iterator[tuple[int, int]]:
        """Yield call and frame in the order in which they are due."""
        for tick in range(self.frames + CHUNK_FRAMES):
            for call in self.calls:
                frame = tick - _first_tick(call)
                if 0 <= frame < self.frames:
                    yield call, frame


class Sent(msgspec.Struct, frozen=True):
    """Unix times at which the frames of each call were sent."""

    at: dict[int, list[float]]
    connected_at: float


def _first_tick(call: int) -> int:
    return call % CHUNK_FRAMES


def stream_of(call: int) -> str:
    """Return the id of a call's stream."""
    return f"MZ{call:032x}"


def payload(call: int, frame: int) -> bytes:
    """Return a frame's audio, which no other frame of the run has."""
    return struct.pack("!II", call, frame) * (FRAME_BYTES // 8)


def frame_of(audio: bytes) -> tuple[int, int] | None:
    """Return call and frame of a payload; None for any other audio."""
    call, frame = struct.unpack("!II", audio[:8])
    return (call, frame) if audio == payload(call, frame) else None


def play(share: Share) -> Sent:
    """Play the calls, then keep their sockets open until stdin ends."""
    with ExitStack() as stack:
        sockets = {
            call: stack.enter_context(_connect(share.url, stream_of(call))) for call in share.calls
        }
        sent = Sent({call: [] for call in share.calls}, time.time())
        for call, frame in share.order():
            message = _media(call, frame)
            if (wait_s := share.due(call, frame) - time.time()) > 0:
                time.sleep(wait_s)
            sent.at[call].append(time.time())
            sockets[call].sendall(message)
        for call, connection in sockets.items():
            connection.sendall(_text({"event": "stop", "streamSid": stream_of(call)}))
        Path(share.report).write_bytes(msgspec.msgpack.encode(sent))
        print("sent", flush=True)
        sys.stdin.read()
    return sent


def _connect(url: str, stream: str) -> socket.socket:
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname or "", place.port or 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(
        f"GET /twilio HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(4_096)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise SystemExit(f"the gateway refused a call: {answer.decode()}")
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"streamSid": stream, "callSid": f"CA{stream}", "mediaFormat": form}
    connection.sendall(_text({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
    connection.sendall(_text({"event": "start", "streamSid": stream, "start": start}))
    return connection


def _media(call: int, frame: int) -> bytes:
    media = {
        "track": "inbound",
        "chunk": str(frame + 1),
        "timestamp": str(frame * 20),
        "payload": base64.b64encode(payload(call, frame)).decode(),
    }
    message = {"event": "media", "sequenceNumber": str(frame + 2), "media": media}
    return _text({**message, "streamSid": stream_of(call)})


def _text(message: object) -> bytes:
    """Return a message as a masked frame."""
    text = json.dumps(message, separators=(",", ":")).encode()
    mask = os.urandom(4)
    size = len(text)
    if size <= _MAX_SHORT:
        head = struct.pack("!BB", _WHOLE_TEXT, _MASKED | size)
    else:
        head = struct.pack("!BBH", _WHOLE_TEXT, _MASKED | _TWO_BYTES, size)
    return head + mask + bytes(apply_mask(text, mask))


if __name__ == "__main__":
    play(msgspec.json.decode(sys.argv[1], type=Share))
