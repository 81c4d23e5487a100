"""What every client program shares: a real-time loop over prepared chunks, and its reports.

Run by the client's own Python, as `CLIENT.py SPEC`; only the standard library is at hand. Lines of
JSON on standard output answer lines on standard input:

    (started)    {"ready": true}
    open         {"open": true}       every session is connected or connecting
    speak        {"speaking": true}   and the loop runs
    mark         {"chunks": N}        handed to the client so far
    (at the end) {"sessions": [{"spoken": CHUNKS, "turns": [TEXT, ...]}, ...], "late": SHARE}

The loop is as cheap as can be: the audio is in memory, one task hands it to all sessions, and
nothing is done with a transcript but to keep it.
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

_PATIENCE_S = 30.0


class Session(Protocol):
    """A session of a client."""

    async def send(self, chunk: bytes) -> None:
        """Hand a chunk to the client."""

    async def finish(self) -> None:
        """End the audio; return when the last words were received."""


Make: TypeAlias = Callable[[Callable[[str], None]], Awaitable[Session]]
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


class Speaker:
    """One session, and how far it is."""

    session: Session

    def __init__(self, spec: Spec, slot: int, silent_chunks: int) -> None:
        self.spec = spec
        self.slot = slot
        self.silent_chunks = silent_chunks
        self.spoken = 0
        self.ended = False
        self.turns: list[str] = []

    def next_chunk(self) -> bytes:
        """Return what is to be sent next."""
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
        self.speakers = [Speaker(spec, slot, silent) for slot, silent in spec.starts]
        self._late = 0
        self._slots = 0
        self._requests: asyncio.Queue[str] = asyncio.Queue()

    async def run(self, make: Make) -> None:
        """Open the sessions, send the audio and write the results; ends the process."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=[loop], daemon=True).start()
        _write({"ready": True})
        await self._await("open")
        for speaker in self.speakers:
            speaker.session = await make(speaker.turns.append)
        _write({"open": True})
        await self._await("speak")
        _write({"speaking": True})
        finishing = await self._speak()
        _, missing = await asyncio.wait(finishing, timeout=_PATIENCE_S)
        sessions = [{"spoken": each.spoken, "turns": each.turns} for each in self.speakers]
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
        os._exit(0)  # whatever the client has running still

    async def _speak(self) -> list[asyncio.Task[None]]:
        spec = self.spec
        phases: list[list[Speaker]] = [[] for _ in range(spec.chunk_ms // spec.slot_ms)]
        for speaker in self.speakers:
            phases[speaker.slot % len(phases)].append(speaker)
        finishing: list[asyncio.Task[None]] = []
        began = time.monotonic()
        slot = 0
        while len(finishing) < len(self.speakers):
            due = began + slot * spec.slot_ms / 1000
            wait = due - time.monotonic()
            # Also when it is late, or the client would get no turn.
            await asyncio.sleep(max(0.0, wait))
            self._slots += 1
            self._late += wait < -spec.slot_ms / 1000
            for speaker in phases[slot % len(phases)]:
                if speaker.slot > slot or speaker.ended:
                    continue
                over = speaker.spoken and speaker.spoken % spec.cycle == 0
                if slot >= spec.last_slot and over:
                    speaker.ended = True
                    finishing.append(asyncio.create_task(speaker.session.finish()))
                else:
                    await speaker.session.send(speaker.next_chunk())
                    self.chunks += 1
            slot += 1
        return finishing

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer at once, however busy the loop is; go when the parent process has ended."""
        for line in sys.stdin:
            if line.strip() == "mark":
                _write({"chunks": self.chunks})
            else:
                loop.call_soon_threadsafe(self._requests.put_nowait, line.strip())
        os._exit(1)

    async def _await(self, what: str) -> None:
        while await self._requests.get() != what:
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
