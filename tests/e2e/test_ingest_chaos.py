"""Calls while gateways and workers are killed and Redis is away: which words and keys arrive.

Each caller speaks numbered words in real time, three a turn, and says a mark after each turn. A
caller whose gateway is killed connects to another one with the same session, and goes on with the
next turn. A killed gateway may lose the end of what it received: the part that it had not appended,
which is less than a chunk of 100 ms and what is in its socket. The audio streams show how much that
is. All that is in them must be published once; without a killed gateway, all that was sent.
"""

import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from schemas.audio import AudioEntry, decode_audio
from schemas.turns import Event, SessionMark
from tests.support.acl import GuardedRedis
from tests.support.carriers import TwilioStream
from tests.support.gateway import FRAME_MS, MULAW, GatewayProcess, frames, gateway
from tests.support.harness import Harness, check_order, kinds, staged, words
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

CALLERS = 3
TURN_WORDS = 3
PAUSE = synthesize_silence(900, MULAW)
WORD_BYTES = len(synthesize_words([0], MULAW))
TURN_BYTES = TURN_WORDS * WORD_BYTES + len(PAUSE)


class Leg:
    """One connection of a caller: what it sent."""

    def __init__(self, first: int) -> None:
        self.first = first
        """Number of its first word."""
        self.sent = b""
        self.marks: list[str] = []
        self.stopped = False
        """Whether its last message was sent."""

    def words_in(self, size: int) -> range:
        """Return the words that are complete in the first `size` bytes. A pause comes before."""
        turns, rest = divmod(max(0, size - len(PAUSE)), TURN_BYTES)
        count = turns * TURN_WORDS + min(TURN_WORDS, rest // WORD_BYTES)
        return range(self.first, self.first + count)


class Caller:
    """A caller who speaks until `over`, and connects again when the gateway is lost."""

    def __init__(self, number: int) -> None:
        self.session = f"MZ{number}"
        self.legs: list[Leg] = []
        self._turns = 0

    async def speak(self, gateways: Sequence[GatewayProcess], over: anyio.Event) -> None:
        """Speak, over the last of the gateways at each connect."""
        while not (self.legs and self.legs[-1].stopped):
            leg = Leg(self._turns * TURN_WORDS)
            self.legs.append(leg)
            try:
                async with connect(f"{gateways[-1].url}/twilio", proxy=None) as socket:
                    await self._play(socket, leg, over)
            except (WebSocketException, OSError):
                await anyio.sleep(FRAME_MS / 1000)

    async def _play(self, socket: ClientConnection, leg: Leg, over: anyio.Event) -> None:
        stream = TwilioStream(self.session)
        for message in stream.opening():
            await socket.send(message)
        due = anyio.current_time()
        sound = PAUSE
        while True:
            for frame in frames(sound):
                await socket.send(stream.media(frame))
                leg.sent += frame
                due += FRAME_MS / 1000
                await anyio.sleep_until(due)
            if over.is_set():
                await socket.send(stream.stop())
                leg.stopped = True
                return
            if sound is not PAUSE:
                name = f"{self.session}-{self._turns}"
                await socket.send(stream.mark(name))
                leg.marks.append(name)
            first = self._turns * TURN_WORDS
            self._turns += 1
            sound = synthesize_words(range(first, first + TURN_WORDS), MULAW) + PAUSE


class Recorder:
    """Reads an audio stream beside the workers, before they delete what is published."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, int], AudioEntry] = {}

    async def run(self, harness: Harness, session: str) -> None:
        """Read until the session has ended; check that no number stands for two contents."""
        key, cursor = harness.audio_key(session), b"0"
        while True:
            try:
                reply: Any = await harness.redis.xread({key: cursor}, block=100)
            except (RedisConnectionError, RedisTimeoutError):
                # Soon again: the workers delete what they published after the outage.
                await anyio.sleep(FRAME_MS / 1000)
                continue
            except ResponseError:  # the worker replaced the stream of the ended session
                return
            for _, rows in reply:
                for entry_id, fields in rows:
                    cursor = entry_id
                    entry = decode_audio(fields)
                    if entry.end:
                        return
                    assert entry.seq is not None
                    known = self.entries.setdefault((entry.src, entry.seq), entry)
                    assert known == entry

    def by_source(self) -> list[list[AudioEntry]]:
        """Return the entries of each gateway that wrote, in the order of their numbers."""
        sources: dict[str, list[AudioEntry]] = {}
        for (source, seq), entry in self.entries.items():
            sources.setdefault(source, []).append(entry)
            assert len(sources[source]) == seq + 1, f"entry {seq} does not follow its predecessor"
        return [*sources.values()]


class Stage:
    """What a fault may break."""

    def __init__(self, server: GuardedRedis, harness: Harness, logs: Path, away_s: float) -> None:
        self.server = server
        self.harness = harness
        self.away_s = away_s
        self.gateways: list[GatewayProcess] = []
        self.workers: list[Process] = []
        self._logs = logs
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run a gateway and two workers, and those that faults add."""
        async with self._stack:
            await self._add_gateway()
            await self._add_worker()
            await self._add_worker()
            yield

    async def _add_gateway(self) -> None:
        log = self._logs / f"gateway-{len(self.gateways)}"
        self.gateways.append(await self._stack.enter_async_context(gateway(self.harness, log)))

    async def _add_worker(self) -> None:
        name = f"worker-{len(self.workers)}"
        run = self.harness.worker_process(name, self._logs / name, lease_ms="2000")
        self.workers.append(await self._stack.enter_async_context(run))

    async def kill_gateway(self) -> None:
        """Kill the gateway that has the calls; another one is ready."""
        killed = self.gateways[-1]
        await self._add_gateway()
        killed.process.send_signal(signal.SIGKILL)

    async def kill_worker(self) -> None:
        """Kill the oldest worker; another one starts."""
        next(each for each in self.workers if each.returncode is None).send_signal(signal.SIGKILL)
        await self._add_worker()

    async def stop_redis(self) -> None:
        """Let Redis not answer for a while."""
        os.kill(self.server.pid, signal.SIGSTOP)
        await anyio.sleep(self.away_s)
        os.kill(self.server.pid, signal.SIGCONT)

    async def restart_redis(self) -> None:
        """Kill Redis, and start it again after a while with its append-only file."""
        await self.server.kill()
        await anyio.sleep(self.away_s)
        await self.server.restart()


Fault = Callable[[Stage], Coroutine[Any, Any, None]]
REDIS_FAULTS: Sequence[Fault] = (Stage.stop_redis, Stage.restart_redis)
ALL_FAULTS: Sequence[Fault] = (*REDIS_FAULTS, Stage.kill_worker, Stage.kill_gateway)


async def run_calls(
    stt: TurnsServer, logs: Path, seed: int, faults: Sequence[Fault], *, away_s: float
) -> int:
    """Let callers speak while the faults come in a random order; return bytes cut by kills."""
    rng = random.Random(seed)
    callers = [Caller(number) for number in range(CALLERS)]
    recorders = [Recorder() for _ in callers]
    over = anyio.Event()
    durable = {"appendfsync": "always"}
    async with (
        GuardedRedis.start(append_only=True, config=durable) as server,
        staged(server, stt.url) as harness,
    ):
        stage = Stage(server, harness, logs, away_s)
        async with stage.run(), anyio.create_task_group() as tasks:
            for caller, recorder in zip(callers, recorders, strict=True):
                tasks.start_soon(recorder.run, harness, caller.session)
                tasks.start_soon(caller.speak, stage.gateways, over)
            for fault in rng.sample(faults, len(faults)):
                await anyio.sleep(rng.uniform(1, 3))
                await fault(stage)
            await anyio.sleep(rng.uniform(1, 3))
            over.set()
            events = await harness.until_ended(*(caller.session for caller in callers))
    return sum(
        check_call(caller.legs, recorder.by_source(), events[caller.session])
        for caller, recorder in zip(callers, recorders, strict=True)
    )


def check_call(
    legs: Sequence[Leg], sources: Sequence[Sequence[AudioEntry]], events: Sequence[Event]
) -> int:
    """Check the events of a call against what was sent and appended; return the bytes cut."""
    left = iter(legs)
    expected: list[int | str] = []
    marks: list[str] = []
    cut, leg = 0, legs[0]
    for entries in sources:
        audio = b"".join(entry.audio for entry in entries)
        leg = next(leg for leg in left if leg.sent.startswith(audio))
        appended = [entry.mark["mark"] for entry in entries if entry.mark is not None]
        if leg.stopped:
            assert (audio, appended) == (leg.sent, leg.marks)
        assert appended == leg.marks[: len(appended)]
        cut += len(leg.sent) - len(audio)
        expected += leg.words_in(len(audio))
        marks += appended
    assert leg.stopped
    check_order(events)
    assert "audio.gap" not in kinds(events)
    assert [word for word in words(events) if isinstance(word, int)] == expected
    assert [each.mark["mark"] for each in events if isinstance(each, SessionMark)] == marks
    return cut


@pytest.mark.parametrize("fault", [*REDIS_FAULTS, Stage.kill_worker])
async def test_fault_behind_the_gateway_loses_nothing(
    fault: Fault, stt: TurnsServer, tmp_path: Path
) -> None:
    assert await run_calls(stt, tmp_path, 1, [fault], away_s=2) == 0


async def test_killed_gateway_loses_only_its_last_audio(stt: TurnsServer, tmp_path: Path) -> None:
    await run_calls(stt, tmp_path, 1, [Stage.kill_gateway], away_s=2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", REDIS_FAULTS)
async def test_redis_away_for_long_loses_nothing(
    fault: Fault, stt: TurnsServer, tmp_path: Path
) -> None:
    assert await run_calls(stt, tmp_path, 1, [fault], away_s=10) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
async def test_faults_in_any_order(seed: int, stt: TurnsServer, tmp_path: Path) -> None:
    await run_calls(stt, tmp_path, seed, [*ALL_FAULTS, *ALL_FAULTS], away_s=4)
