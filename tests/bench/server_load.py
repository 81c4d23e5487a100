"""How many script sessions the local turns server carries: `python -m tests.bench.server_load`.

The server runs in its own process. Each session plays words in real time, 100 ms a message, and
checks that it receives all of them. The run measures the server's CPU time and memory, and the
delay from a word's last message to its update. Both ends run on this machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import psutil
from websockets.asyncio.client import ClientConnection, connect

from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_words, words_of
from worker.local.harness import open_stt_server

LINE: Final = AudioFormat("pcm_s16le", 16_000)
CHUNK_S: Final = 0.1
WORD_S: Final = 0.2
QUERY: Final = "model=ink-2&encoding=pcm_s16le&sample_rate=16000&cartesia_version=2026-03-01"


class Session:
    """One client: sends its words in time and records when each arrives."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.received: list[int | str] = []
        self._sent_at: list[float] = []

    async def play(self, ws: ClientConnection, chunks: Sequence[bytes], start: float) -> None:
        """Send everything from `start` on, then close and read to the end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, ws)
            for number, chunk in enumerate(chunks):
                await anyio.sleep(max(0, start + number * CHUNK_S - time.perf_counter()))
                await ws.send(chunk)
                if number % 2:  # the second half of a word
                    self._sent_at.append(time.perf_counter())
            await ws.send('{"type":"close"}')

    async def _read(self, ws: ClientConnection) -> None:
        async for message in ws:
            event = json.loads(message)
            if event["type"] == "turn.update":
                word = len(self.delays)
                self.delays.append(time.perf_counter() - self._sent_at[word])
            elif event["type"] == "turn.end":
                self.received += words_of(event["transcript"])


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(count: int, seconds: float) -> None:
    """Play `count` sessions at once and print the measurements."""
    words = round(seconds / WORD_S)
    audio = synthesize_words(range(words), LINE)
    size = round(LINE.sample_rate * CHUNK_S) * 2
    chunks = [audio[at : at + size] for at in range(0, len(audio), size)]
    sessions = [Session() for _ in range(count)]
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        starting = open_stt_server(Path(directory), "script")
        server, server_url = await stack.enter_async_context(starting)
        process, url = psutil.Process(server.pid), f"{server_url}?{QUERY}&access_token=any"
        idle = process.memory_info().rss
        begun, cpu_begun = time.perf_counter(), cpu_s(process)
        sockets = [
            await connect(url, proxy=None, compression=None, ping_interval=None)
            for _ in range(count)
        ]
        opened, cpu_opened = time.perf_counter(), cpu_s(process)
        start = opened + 1
        async with anyio.create_task_group() as tasks:
            for number, (session, ws) in enumerate(zip(sessions, sockets, strict=True)):
                tasks.start_soon(session.play, ws, chunks, start + CHUNK_S * number / count)
            await anyio.sleep(1 + seconds * 0.9)
            full = process.memory_info().rss
        played, cpu_played = time.perf_counter() - start, cpu_s(process) - cpu_opened
    messages = count * len(chunks)
    delays = sorted(1000 * delay for session in sessions for delay in session.delays)
    exact = sum(session.received == list(range(words)) for session in sessions)
    per_open = 1e6 * (cpu_opened - cpu_begun) / count
    cents = statistics.quantiles(delays, n=1000)
    print(f"sessions                 {count}, {seconds:g} s of audio each, {messages} messages")
    print(f"all words received       {exact}")
    print(f"opened                   {count / (opened - begun):.0f}/s, {per_open:.0f} us CPU each")
    print(f"server CPU               {cpu_played / played:.2f} cores, ", end="")
    print(f"{1e6 * cpu_played / messages:.1f} us a message, events included")
    print(f"server memory            {(full - idle) / count / 1024:.1f} KiB a session")
    print(f"word sent to update      p50 {cents[499]:.1f} ms, ", end="")
    print(f"p99 {cents[989]:.1f} ms, max {delays[-1]:.1f} ms")
    if exact < count:
        raise SystemExit("words were lost")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of audio in each session")
    options = parser.parse_args()
    anyio.run(measure, options.sessions, options.seconds, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
