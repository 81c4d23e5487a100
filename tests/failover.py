"""`python -m tests.failover`: how much later a turn ends if its provider is killed inside it.

Redis, both local STT servers and the worker run in separate processes. Each run plays a turn of
6 s twice: once undisturbed, and once while the first provider is killed after 3 s.
"""

import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import Meta

from schemas.turns import TurnEnd
from tests.support.harness import PCM16, Harness, check_order, staged, words
from worker.cli.command import Command, Option, Parser, run_async
from worker.cli.main import main
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.redis import EmbeddedRedis
from worker.settings import Settings

TURN = range(30)
"""Words of a turn of 6 s."""
SILENT_WORDS = 6
"""Silence after the turn, in lengths of a word."""
PROVIDERS = ("cartesia", "flux")


class Failover(Command):
    """Measure how much later a turn ends if its provider is killed inside it.

    examples:
      python -m tests.failover
      python -m tests.failover --runs 3 --first flux
    """

    runs: Annotated[int, Meta(ge=1, le=1_000), Option("number of runs", "N")] = 10
    first: Annotated[str, Option("the provider that is killed", choices=PROVIDERS)] = "cartesia"

    def run(self) -> int:
        """Run, and print the delay of each run, the median and the maximum."""
        return run_async(self._measure)

    async def _measure(self) -> int:
        second = next(name for name in PROVIDERS if name != self.first)
        extra: list[float] = []
        with tempfile.TemporaryDirectory(prefix="turnbus-") as directory:
            for number in range(self.runs):
                log = Path(f"{directory}/worker-{number}.log")
                extra.append(await _one_run(log, self.first, second))
                print(f"run {number + 1}: the turn ends {extra[-1]:.2f} s later", flush=True)
        waited_s = Settings().stt_failover_s
        median_s, max_s = statistics.median(extra), max(extra)
        print(f"median {median_s:.2f} s, max {max_s:.2f} s; no word is lost or repeated")
        after = f"median {median_s - waited_s:.2f} s, max {max_s - waited_s:.2f} s"
        print(f"without the failover time of {waited_s:g} s: {after}")
        return 0


async def _one_run(log: Path, first: str, second: str) -> float:
    async with (
        _server(first) as (victim, first_url),
        _server(second) as (_, second_url),
        EmbeddedRedis.start() as redis,
        staged(redis, first_url) as harness,
    ):
        urls = {first: first_url, second: second_url}
        settings = {
            "stt_url": urls["cartesia"],
            "stt_flux_url": urls["flux"],
            "stt_providers": f"{first},{second}",
        }
        async with harness.worker_process("w", log, **settings):
            await _until_ready(harness)
            usual_s = await _play(harness, "undisturbed", None)
            return await _play(harness, "killed", victim) - usual_s


async def _until_ready(harness: Harness) -> None:
    """Wait until the worker has served a session, an empty one."""
    await harness.announce("ready")
    await harness.append("ready", end="1")
    await harness.until_ended("ready")


async def _play(harness: Harness, session: str, victim: Process | None) -> float:
    """Return the time from the turn's last sound to its end."""
    await harness.announce(session)
    due, spoken_at = anyio.current_time(), 0.0
    for word in range(len(TURN) + SILENT_WORDS):
        if word == len(TURN):
            spoken_at = time.time() - (anyio.current_time() - due)
        if word == len(TURN) // 2 and victim is not None:
            victim.kill()
        due += WORD_MS / 1_000
        await anyio.sleep_until(due)
        spoken = word < len(TURN)
        sound = synthesize_words([word], PCM16) if spoken else synthesize_silence(WORD_MS, PCM16)
        await harness.append(session, audio=sound)
    await harness.append(session, end="1")
    events = (await harness.until_ended(session))[session]
    check_order(events)
    if words(events) != [*TURN]:
        raise AssertionError(f"the words of the session are {words(events)}")
    (end,) = [event for event in events if isinstance(event, TurnEnd)]
    return end.at - spoken_at


@asynccontextmanager
async def _server(provider: str) -> AsyncIterator[tuple[Process, str]]:
    """Run a local STT server as a process; yield it with its address."""
    command = [sys.executable, "-m", "worker", "stt-server", "--port", "0"]
    options = ["--provider", provider, "--engine", "script", "--latency-ms", "150"]
    async with await anyio.open_process([*command, *options], stderr=None) as process:
        assert process.stdout is not None
        line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 1_000)
        url = re.search(rb"ws://\S+", line)
        assert url is not None, line
        try:
            yield process, url[0].decode()
        finally:
            if process.returncode is None:
                process.kill()


def make_parser(_argv: Sequence[str]) -> Parser:
    """Return the parser of the program."""
    return Failover.parser("python -m tests.failover")


if __name__ == "__main__":
    sys.exit(main(make_parser=make_parser))
