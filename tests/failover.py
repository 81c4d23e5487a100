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

from schemas.turns import TurnEnd, TurnUpdate
from tests.support.harness import PCM16, Harness, check_order, staged, words
from worker.cli.command import Command, Option, Parser, run_async
from worker.cli.main import main
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.redis import EmbeddedRedis

TURN = range(30)
"""Words of a turn of 6 s."""
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
        print(f"median {statistics.median(extra):.2f} s, max {max(extra):.2f} s; no word is lost")
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
            usual_s = await _play(harness, "undisturbed", None)
            return await _play(harness, "killed", victim) - usual_s


async def _play(harness: Harness, session: str, victim: Process | None) -> float:
    """Return the time from the turn's last sound to its end."""
    await harness.announce(session)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_inside_turn, harness, session, victim)
        await harness.play(session, synthesize_words(TURN, PCM16), end=False)
        spoken_at = time.time()
        await harness.play(session, synthesize_silence(1_200, PCM16))
        events = (await harness.until_ended(session))[session]
    check_order(events)
    if words(events) != [*TURN]:
        raise AssertionError(f"the words of the session are {words(events)}")
    (end,) = [event for event in events if isinstance(event, TurnEnd)]
    return end.at - spoken_at


async def _kill_inside_turn(harness: Harness, session: str, victim: Process | None) -> None:
    await harness.until(session, TurnUpdate, len(TURN) // 2)
    if victim is not None:
        victim.kill()


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
