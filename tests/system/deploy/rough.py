"""Five minutes of faults: a small fleet at work, and everything that the dashboard shows.

The fleet prefers Cartesia to Flux. Only the faults are staged: the sessions are real, on a real
Redis, with workers as processes.
"""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from websockets.asyncio.client import connect as dial

from schemas import Encoding, Keys, SessionEntry
from schemas.audio import ProviderName
from tests.support.harness import PCM16
from tests.system.deploy.calls import Call
from worker.bus.client.connection import connect
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.harness import child_environment, provider_settings
from worker.local.process import ChildProcess
from worker.local.redis import EmbeddedRedis, free_port
from worker.producer import Producer

WORKERS: Final = ("worker-1", "worker-2")
PROVIDERS: Final[tuple[ProviderName, ...]] = ("cartesia", "flux")
GATEWAY: Final = "gateway"
THROUGH_GATEWAY: Final = 3
"""Every third call comes through the gateway."""

CALLS: Final = 24
RUSH: Final = 10
PERMITS: Final = 28
"""Maximum sockets of the plan; a rush has more calls."""

PLACES: Final = 22
"""Maximum sockets of a worker; with one worker gone there are fewer than calls."""

_LATENCY_MS: Final = 150
_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 0.05


class Mark(NamedTuple):
    """An action, and its time."""

    at: float
    """Unix time in seconds."""
    what: str


class Rough:
    """All that runs, and the actions on it; `open` sets it up."""

    def __init__(
        self,
        server: EmbeddedRedis,
        redis: Redis,
        stt: TurnsServer,
        flux: TurnsServer,
        tasks: TaskGroup,
        stack: AsyncExitStack,
        logs: Path,
    ) -> None:
        self._server = server
        self._redis = redis
        self._stt = stt
        self._flux = flux
        self._tasks = tasks
        self._stack = stack
        self._logs = logs
        self._lives: dict[str, ChildProcess] = {}
        self._calls: list[Call] = []
        self._producers: list[Producer] = []
        self.ports: Final = {name: free_port() for name in (*WORKERS, GATEWAY)}
        """Ports on which the workers and the gateway serve their metrics."""
        self.marks: Final[list[Mark]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, logs: Path) -> AsyncIterator[Self]:
        """Start everything; leave only the logs at the end."""
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmbeddedRedis.start(append_only=True))
            redis = await stack.enter_async_context(connect(server.url))
            engine = ScriptEngine(ScriptOptions(latency_ms=_LATENCY_MS))
            stt, flux = [
                await stack.enter_async_context(
                    TurnsServer.serve(ServerSettings(port=0, provider=provider), engine)
                )
                for provider in PROVIDERS
            ]
            tasks = await stack.enter_async_context(anyio.create_task_group())
            rough = cls(server, redis, stt, flux, tasks, stack, logs)
            for name in WORKERS:
                await rough._start(name)
            await rough._until(len(WORKERS))
            await rough._start_gateway()
            stack.callback(tasks.cancel_scope.cancel)  # before the gateway stops
            yield rough

    async def run(self) -> None:
        """Run the scenario; calls continue at the end."""
        one, two = WORKERS
        for number in range(CALLS):
            self._begin(number)
            await anyio.sleep(1.5)
        await anyio.sleep(20)
        self._note("every socket at cartesia is cut")
        self._stt.cut_all()
        await anyio.sleep(25)
        self._note(f"{RUSH} calls more, and the plan has {PERMITS} sockets")
        for number in range(CALLS, CALLS + RUSH):
            self._begin(number)
        await anyio.sleep(20)
        self._note("as many hang up")
        for call in self._calls[:RUSH]:
            call.hanging_up = True
        await anyio.sleep(20)
        self._note(f"{two} stands still for 8 s (SIGSTOP)")
        self._lives[two].signal(signal.SIGSTOP)
        await anyio.sleep(8)
        self._lives[two].signal(signal.SIGCONT)
        await anyio.sleep(22)
        self._note(f"{one} is killed (SIGKILL), and started again 15 s later")
        self._lives[one].signal(signal.SIGKILL)
        await anyio.sleep(15)
        await self._start(one)
        await anyio.sleep(20)
        self._note("Redis is killed, and started again 8 s later")
        await self._server.kill()
        await anyio.sleep(8)
        await self._server.restart()
        await anyio.sleep(22)
        self._note("cartesia cuts all sockets and answers 503 for 12 s")
        async with self._stt.outage("503"):
            self._stt.cut_all()
            await anyio.sleep(12)
        await anyio.sleep(23)
        self._note("a producer loses 2 s of audio, another announces an MP3")
        self._producers[-1].chunks += 2_000 // WORD_MS
        announced: dict[Any, Any] = {"session": "mp3", "encoding": "mp3", "sample_rate": "44100"}
        await self._redis.xadd(Keys().sessions, announced)
        await anyio.sleep(15)
        self._note(f"{two} is stopped (SIGTERM), and started again")
        self._lives[two].signal(signal.SIGTERM)
        await self._lives[two].wait()
        await self._start(two)
        await anyio.sleep(30)

    def _note(self, what: str) -> None:
        self.marks.append(Mark(time.time(), what))

    def _begin(self, number: int) -> None:
        call = Call(number)
        entry = SessionEntry(
            session=call.session,
            encoding=Encoding(PCM16.encoding),
            sample_rate=PCM16.sample_rate,
        )
        self._calls.append(call)
        if number % THROUGH_GATEWAY == 1:
            url = f"ws://127.0.0.1:{self.ports[GATEWAY]}/raw?session={call.session}"
            self._tasks.start_soon(_speak_through_gateway, call, url)
            return
        producer = Producer(self._redis, Keys(), entry)
        self._producers.append(producer)
        self._tasks.start_soon(_speak, call, producer)

    async def _start(self, name: str) -> None:
        settings = {
            "REDIS_URL": self._server.url,
            **provider_settings({"cartesia": self._stt.url, "flux": self._flux.url}),
            "WORKER_ID": name,
            "ADMIN_ADDR": f"127.0.0.1:{self.ports[name]}",
            "MAX_SESSIONS": str(PLACES),
            "STT_MAX_CONNECTIONS": str(PERMITS),
            "DRAIN_S": "5",
        }
        log = self._logs / f"{name}.{len(self.marks)}.log"
        life = ChildProcess.start(name, ["run"], child_environment(settings), log)
        self._lives[name] = await self._stack.enter_async_context(life)

    async def _start_gateway(self) -> None:
        settings = {
            "REDIS_URL": self._server.url,
            "INGEST_LISTEN": f"127.0.0.1:{self.ports[GATEWAY]}",
            "INGEST_BUFFER_S": "5",  # less than the outage of Redis
            "INGEST_MAX_CALLS": str(CALLS),
        }
        log = self._logs / f"{GATEWAY}.log"
        life = ChildProcess.start(GATEWAY, ["ingest"], child_environment(settings), log)
        await self._stack.enter_async_context(life)
        with anyio.fail_after(_TIMEOUT_S):
            while "listening on" not in log.read_text("utf-8"):
                await anyio.sleep(_LOOK_S)

    async def _until(self, workers: int) -> None:
        with anyio.fail_after(_TIMEOUT_S):
            while await self._redis.hlen(Keys().workers) < workers:
                await anyio.sleep(_LOOK_S)


async def _speak(call: Call, producer: Producer) -> None:
    """Announce a call and append its audio in real time until it ends."""
    await producer.announce()
    due = anyio.current_time()
    while (chunk := call.next_chunk()) is not None:
        await producer.append(chunk)
        due += WORD_MS / 1000
        await anyio.sleep_until(due)
    await producer.end()


async def _speak_through_gateway(call: Call, url: str) -> None:
    """Send a call's audio to the gateway in real time until it ends."""
    async with dial(url, proxy=None) as gateway:
        due = anyio.current_time()
        while (chunk := call.next_chunk()) is not None:
            await gateway.send(chunk)
            due += WORD_MS / 1000
            await anyio.sleep_until(due)
        await gateway.send('{"end": true}')
        await gateway.wait_closed()
