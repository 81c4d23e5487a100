"""Shared part of the client programs: a real-time loop over prepared chunks, and its reports.

The client's own Python runs it as `CLIENT.py SPEC`, with the standard library only. Lines of JSON
on standard output answer lines on standard input:

    (started)    {"done": "ready"}
    open         {"done": "open"}   every session is connected or connecting
    load         {"done": "load"}   the loop runs
    mark         {"chunks": N}      sent to the client so far
    (at the end) {"sessions": [{"spoken": CHUNKS, "turns": [TEXT, ...]}, ...], "late": SHARE}

The loop is cheap: the audio is in memory, one task hands it to all sessions, and transcripts are
only stored.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

_END_TIMEOUT_S = 30.0


class ClientSession(Protocol):
    """A session of a client."""

    async def send(self, chunk: bytes) -> None:
        """Send a chunk."""

    async def finish(self) -> None:
        """End the audio; return when the last words were received."""


Make: TypeAlias = Callable[[Callable[[str], None]], Awaitable[ClientSession]]
"""Opens a session that passes the text of each turn to the given function."""


class Spec:
    """Audio, its schedule, and the server URL."""

    def __init__(self, file: str) -> None:
        given: dict[str, Any] = json.loads(Path(file).read_text())
        self.base_url: str = given["base_url"]
        self.url: str = given["url"]
        self.sample_rate: int = given["sample_rate"]
        self.chunk_ms: int = given["chunk_ms"]
        self.slot_ms: int = given["slot_ms"]
        self.last_slot: int = given["last_slot"]
        self.cycle: int = given["cycle"]
        self.starts: list[tuple[int, int]] = given["starts"]
        sound = Path(given["audio"]).read_bytes()
        size = given["chunk_bytes"]
        self.chunks = [sound[at : at + size] for at in range(0, len(sound), size)]
        self.silence = bytes(size)


class PeerSession:
    """One session, and its progress."""

    client: ClientSession

    def __init__(self, spec: Spec, slot: int, silent_chunks: int) -> None:
        self.spec = spec
        self.slot = slot
        self.silent_chunks = silent_chunks
        self.spoken = 0
        self.ended = False
        self.turns: list[str] = []

    def next_chunk(self) -> bytes:
        """Return the next chunk."""
        if self.silent_chunks:
            self.silent_chunks -= 1
            return self.spec.silence
        self.spoken += 1
        return self.spec.chunks[self.spoken - 1]


class Peer:
    """Drives one client."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.chunks = 0
        self.sessions = [PeerSession(spec, slot, silent) for slot, silent in spec.starts]
        self._late = 0
        self._slots = 0
        self._requests: asyncio.Queue[str] = asyncio.Queue()

    async def run(self, make: Make) -> None:
        """Open the sessions, send the audio and write the results; ends the process."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read_requests, args=[loop], daemon=True).start()
        await self._step("ready", "open")
        for session in self.sessions:
            session.client = await make(session.turns.append)
        await self._step("open", "load")
        _write({"done": "load"})
        finishing = await self._send_all()
        _, missing = await asyncio.wait(finishing, timeout=_END_TIMEOUT_S)
        sessions = [{"spoken": each.spoken, "turns": each.turns} for each in self.sessions]
        failures = [
            repr(task.exception())
            for task in finishing
            if task not in missing and task.exception() is not None
        ]
        _write(
            {
                "sessions": sessions,
                "late": self._late / max(1, self._slots),
                "failures": failures[:5],
                "missing": len(missing),
            }
        )
        sys.stdout.flush()
        os._exit(0)  # the client may have running tasks

    async def _send_all(self) -> list[asyncio.Task[None]]:
        spec = self.spec
        phases: list[list[PeerSession]] = [[] for _ in range(spec.chunk_ms // spec.slot_ms)]
        for session in self.sessions:
            phases[session.slot % len(phases)].append(session)
        finishing: list[asyncio.Task[None]] = []
        began = time.monotonic()
        slot = 0
        while len(finishing) < len(self.sessions):
            due = began + slot * spec.slot_ms / 1000
            wait = due - time.monotonic()
            # Also when it is late, or the client would get no turn.
            await asyncio.sleep(max(0.0, wait))
            self._slots += 1
            self._late += wait < -spec.slot_ms / 1000
            for session in phases[slot % len(phases)]:
                if session.slot > slot or session.ended:
                    continue
                over = session.spoken and session.spoken % spec.cycle == 0
                if slot >= spec.last_slot and over:
                    session.ended = True
                    finishing.append(asyncio.create_task(session.client.finish()))
                else:
                    await session.client.send(session.next_chunk())
                    self.chunks += 1
            slot += 1
        return finishing

    def _read_requests(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer at once, even if the loop is busy; exit when the parent process has ended."""
        for line in sys.stdin:
            if line.strip() == "mark":
                _write({"chunks": self.chunks})
            else:
                loop.call_soon_threadsafe(self._requests.put_nowait, line.strip())
        os._exit(1)

    async def _step(self, done: str, request: str) -> None:
        """Report that a step is complete; wait for the next request."""
        _write({"done": done})
        while await self._requests.get() != request:
            pass


def _write(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def drive(prepare: Callable[[Spec], Make]) -> None:
    """Run a client's program.

    On uvloop where it is installed, as the worker is in its bench.
    """
    spec = Spec(sys.argv[1])

    async def main() -> None:
        await Peer(spec).run(prepare(spec))

    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
