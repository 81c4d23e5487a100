"""How many Twilio calls one gateway carries: `python -m tests.bench.gateway_load`.

One `turnbus ingest` process appends to the embedded Redis; the calls come from other processes.
Each call sends JSON messages with 20 ms of mu-law in real time, and the calls are spread evenly.
No two frames are equal: the run finds each frame that is lost, repeated or changed, and exits with
1 then. All processes share the machine and its clock.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from anyio.abc import Process
from redis.asyncio import Redis

from schemas import Keys, decode_audio
from tests.bench.gateway_calls import (
    CHUNK_FRAMES,
    FRAME_BYTES,
    FRAME_S,
    Sent,
    Share,
    frame_of,
    stream_of,
)
from tests.support.gateway import gateway_at
from tests.support.polling import eventually
from worker.bench.machine import Machine, Meter, Usage
from worker.local.redis import EmbeddedRedis

PREFIX: Final = "load"
MARGIN_S: Final = 0.5
"""Time after the first frame, and before the last one, that is not measured."""
START_FRAMES: Final = round(1 / FRAME_S)
"""Frames of the first second."""


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        """Return the percentiles of values in ms."""
        cents = statistics.quantiles(values, n=100, method="inclusive")
        return cls(round(cents[49], 2), round(cents[98], 2), round(max(values), 2))

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, max {self.max:.1f} ms"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one run. Cores are shares of one core."""

    machine: Machine
    calls: int
    seconds: float
    frames: int
    entries: int
    entries_short: int
    """Entries of less than 100 ms: a frame came too late for its chunk."""
    frames_lost: int
    frames_repeated: int
    frames_misplaced: int
    """Frames behind a later one, of another call, or changed."""
    gateway_cores: float
    gateway_us_per_frame: float
    gateway_ms_per_call_s: float
    """CPU of the gateway for each call and second."""
    redis_cores: float
    redis_us_per_frame: float
    clients_cores: float
    others_cores: float
    """CPU of programs outside the benchmark."""
    gateway_mib: float
    gateway_kib_per_call: float
    added: Percentiles
    """Time from sending the frame that completes a chunk to the id of the chunk's entry."""
    added_at_start: Percentiles
    """The same in the first second, in which all calls are announced; `added` is without it."""
    clients_late: Percentiles
    """How late the frames were sent."""

    @property
    def is_correct(self) -> bool:
        """Whether Redis has each frame once, in order."""
        return not (self.frames_lost or self.frames_repeated or self.frames_misplaced)


class Appended(NamedTuple):
    """An entry of a call's audio stream."""

    at_ms: int
    """Unix time by the entry's id."""
    audio: bytes


async def measure(calls: int, seconds: float, clients: int) -> Result:
    """Play `calls` calls of `seconds` from `clients` processes through one gateway."""
    machine = Machine.here()
    frames = round(seconds / FRAME_S) // CHUNK_FRAMES * CHUNK_FRAMES
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(EmbeddedRedis.start())
        redis = await stack.enter_async_context(Redis.from_url(server.url, protocol=2))
        ingest = await stack.enter_async_context(
            gateway_at(server.url, PREFIX, directory / "log", max_calls=str(calls + 1))
        )
        pids = {"gateway": ingest.process.pid, "redis": server.pid}
        idle = Meter(pids).read()
        starts_at = time.time() + 2 + calls / 100
        shares = [
            Share(
                ingest.url,
                [*range(at, calls, clients)],
                calls,
                frames,
                starts_at,
                str(directory / f"client-{at}"),
            )
            for at in range(clients)
        ]
        players = [await stack.enter_async_context(_client(share)) for share in shares]
        meter = Meter(pids | {f"client {at}": each.pid for at, each in enumerate(players)})
        await anyio.sleep(starts_at + MARGIN_S - time.time())
        before = meter.read()
        await anyio.sleep(starts_at + frames * FRAME_S - MARGIN_S - time.time())
        after = meter.read()
        sent: dict[int, list[float]] = {}
        for share, player in zip(shares, players, strict=True):
            sent |= (await _report(share, player)).at
        appended = {call: await _appended(redis, call) for call in sent}
    usage = after.since(before)
    per_frame_us = 1e6 / (calls * usage.seconds / FRAME_S)
    counts, entries_short, added, added_at_start = compare(sent, appended)
    grown = after.rss["gateway"] - idle.rss["gateway"]
    return Result(
        machine=machine,
        calls=calls,
        seconds=seconds,
        frames=calls * frames,
        entries=sum(map(len, appended.values())),
        entries_short=entries_short,
        frames_lost=counts["lost"],
        frames_repeated=counts["repeated"],
        frames_misplaced=counts["misplaced"],
        gateway_cores=round(usage.shares["gateway"], 3),
        gateway_us_per_frame=round(usage.cpu_s["gateway"] * per_frame_us, 1),
        gateway_ms_per_call_s=round(1e3 * usage.shares["gateway"] / calls, 2),
        redis_cores=round(usage.shares["redis"], 3),
        redis_us_per_frame=round(usage.cpu_s["redis"] * per_frame_us, 1),
        clients_cores=round(_clients_cores(usage), 3),
        others_cores=round(usage.others_s / usage.seconds, 3),
        gateway_mib=round(after.rss["gateway"] / 2**20, 1),
        gateway_kib_per_call=round(grown / calls / 2**10, 1),
        added=Percentiles.of(added),
        added_at_start=Percentiles.of(added_at_start),
        clients_late=Percentiles.of(
            [
                1e3 * max(0.0, at - shares[0].due(call, frame))
                for call, times in sent.items()
                for frame, at in enumerate(times)
            ]
        ),
    )


def _clients_cores(usage: Usage) -> float:
    return sum(share for name, share in usage.shares.items() if name.startswith("client"))


@asynccontextmanager
async def _client(share: Share) -> AsyncIterator[Process]:
    """Run a process that plays a share of the calls; it ends with the block."""
    command = [sys.executable, "-m", "tests.bench.gateway_calls"]
    arguments = [*command, msgspec.json.encode(share).decode()]
    process = await anyio.open_process(arguments, stdin=PIPE, stdout=PIPE, stderr=None)
    async with process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()


async def _report(share: Share, player: Process) -> Sent:
    """Wait until a process has sent everything, and return its report."""
    assert player.stdout is not None
    await player.stdout.receive()
    sent = msgspec.msgpack.decode(await anyio.Path(share.report).read_bytes(), type=Sent)
    if sent.connected_at > share.starts_at:
        raise SystemExit("the calls were not all connected in time: use more clients")
    return sent


async def _appended(redis: Redis, call: int) -> list[Appended]:
    """Return the audio entries of a call once it has ended."""
    key = Keys(PREFIX).audio("0", stream_of(call))

    async def ended() -> bool:
        last: Any = await redis.xrevrange(key, count=1)
        return bool(last) and b"end" in last[0][1]

    await eventually(ended, f"the end of call {call}")
    rows: Any = await redis.xrange(key)
    entries = [(entry_id, decode_audio(fields)) for entry_id, fields in rows]
    return [
        Appended(int(entry_id.partition(b"-")[0]), entry.audio)
        for entry_id, entry in entries
        if entry.audio
    ]


def compare(
    sent: dict[int, list[float]], appended: dict[int, list[Appended]]
) -> tuple[Counter[str], int, list[float], list[float]]:
    """Return frames by what is wrong with them, short entries, and added milliseconds.

    These are of the time after the first second of a call, and of that second.
    """
    counts: Counter[str] = Counter()
    short = 0
    added: list[float] = []
    added_at_start: list[float] = []
    for call, times in sent.items():
        seen: Counter[int] = Counter()
        newest = -1
        for entry in appended[call]:
            for at in range(0, len(entry.audio), FRAME_BYTES):
                found = frame_of(entry.audio[at : at + FRAME_BYTES])
                if found is None or found[0] != call or found[1] < newest:
                    counts["misplaced"] += 1
                    continue
                newest = found[1]
                seen[newest] += 1
            if len(entry.audio) == CHUNK_FRAMES * FRAME_BYTES:
                is_start = newest < START_FRAMES
                added_ms = entry.at_ms - 1e3 * times[newest]
                (added_at_start if is_start else added).append(added_ms)
            else:
                short += 1
        counts["lost"] += len(times) - len(seen)
        counts["repeated"] += seen.total() - len(seen)
    return counts, short, added, added_at_start


def report(result: Result) -> str:
    """Return a result as text."""
    r, machine = result, result.machine
    return f"""\
machine          {machine.cpu}, {machine.cores} cores, load {machine.load[0]:.1f}
calls            {r.calls}, {r.seconds:g} s each
frames           {r.frames}; {r.frames_lost} lost, {r.frames_repeated} repeated, \
{r.frames_misplaced} misplaced
entries          {r.entries}, {r.entries_short} of less than 100 ms
gateway CPU      {r.gateway_cores:.2f} cores, {r.gateway_us_per_frame:.1f} us a frame, \
{r.gateway_ms_per_call_s:.2f} ms a call and second
Redis CPU        {r.redis_cores:.2f} cores, {r.redis_us_per_frame:.1f} us a frame
gateway memory   {r.gateway_mib:.0f} MiB, {r.gateway_kib_per_call:.0f} KiB a call
added latency    {r.added}
in second 1      {r.added_at_start}
sent late        {r.clients_late}
other CPU        clients {r.clients_cores:.2f} cores, other programs {r.others_cores:.2f}"""


def main() -> None:
    """Read the options, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0, help="of audio in each call")
    parser.add_argument("--clients", type=int, default=2, help="processes that play the calls")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    options = parser.parse_args()
    result = anyio.run(measure, options.calls, options.seconds, options.clients)
    text = json.dumps(msgspec.to_builtins(result), indent=2) if options.json else report(result)
    print(text)
    if not result.is_correct:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
