"""Environment of a run: Redis, the STT server and its proxy, producer, consumer and workers."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
from redis.asyncio import Redis

from schemas import Keys
from schemas.turns import Event
from tests.chaos.event_log import EventLog
from tests.chaos.fleet import WorkerProcess
from tests.chaos.proxy import Link, Proxy
from worker.bench.harness import FILES_BESIDE_SOCKETS, allow_open_files, environment
from worker.bench.recovery.plan import LATENCY_MS, RecoveryPlan
from worker.bench.recovery.producer import ProducerSession, SessionsProducer
from worker.bus.client.connection import connect
from worker.errors import TurnbusError
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis

_PATIENCE_S: Final = 120.0
_LOOK_S: Final = 0.01
_OPEN_PER_S: Final = 50.0
_ACQUAINTED_S: Final = 2.0
"""Delay until workers have stats each other alive, which failure detection requires."""


class RecoveryHarness:
    """All parts of a run; `open` starts them."""

    def __init__(
        self,
        server: EmbeddedRedis,
        redis: Redis,
        stt: TurnsServer,
        way: Proxy,
        chunk_ms: int,
    ) -> None:
        self.redis: Final = redis
        self.keys: Final = Keys()
        self.history: Final = EventLog(redis, self.keys, ["0"])
        self.producer: Final = SessionsProducer(server.port, self.keys, chunk_ms)
        self._server = server
        self._stt = stt
        self._way = way

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: RecoveryPlan) -> AsyncIterator[Self]:
        """Start everything except workers; clean up when the block ends.

        Raises LocalPartMissing or BusUnavailable as `EmbeddedRedis` does.
        """
        # A proxied socket uses three file descriptors of this process.
        most = max(plan.kill_sessions, plan.drain_sessions, 2 * plan.trials)
        allow_open_files(4 * most + FILES_BESIDE_SOCKETS)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmbeddedRedis.start())
            redis = await stack.enter_async_context(connect(server.url))
            engine = ScriptEngine(ScriptOptions(latency_ms=LATENCY_MS))
            stt = await stack.enter_async_context(TurnsServer.serve(ServerSettings(port=0), engine))
            way = await stack.enter_async_context(Proxy.open(lambda: stt.port))
            rig = cls(server, redis, stt, way, plan.chunk_ms)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(rig.history.run)
            tasks.start_soon(rig.producer.run)
            yield rig

    @asynccontextmanager
    async def worker(
        self, name: str, room: int, *, proxied: bool = False
    ) -> AsyncIterator[WorkerProcess]:
        """Run a worker with a maximum of `room` sessions; yield it once its record is in Redis.

        Raises TurnbusError if it does not start.
        """
        settings = {
            "REDIS_URL": self._server.url,
            "STT_URL": self._stt.url,
            "WORKER_ID": name,
            "MAX_SESSIONS": str(room),
            "ADMIN_ADDR": "",
        }
        if proxied:
            port = str(self._stt.port)
            settings["STT_URL"] = self._stt.url.replace(port, str(self._way.port))
        log = self._log(name)
        async with WorkerProcess.start(name, ["run"], environment(settings), log) as worker:
            known = anyio.current_time() + _PATIENCE_S
            while not await self.redis.hexists(self.keys.workers, name):
                if not worker.running or anyio.current_time() > known:
                    raise TurnbusError(
                        f"{name} did not start; its last log lines:\n{worker.tail()}"
                    )
                await anyio.sleep(_LOOK_S)
            yield worker

    @asynccontextmanager
    async def standby_worker(self, name: str, room: int) -> AsyncIterator[WorkerProcess]:
        """Run a second worker, which will take over sessions."""
        async with self.worker(name, room) as worker:
            await anyio.sleep(_ACQUAINTED_S)
            yield worker

    async def lines(self, name: str, count: int) -> list[ProducerSession]:
        """Open sessions, one after the other."""
        lines = []
        for number in range(count):
            lines.append(self.producer.open(f"{name}-{number:04}"))
            await anyio.sleep(1 / _OPEN_PER_S)
        return lines

    def events(self, line: ProducerSession) -> list[Event]:
        """Return the events published for a session so far."""
        return self.history.events(line.session)

    async def all_ended(self, lines: Iterable[ProducerSession]) -> None:
        """Wait until every session ended. Raises TurnbusError if one does not."""
        sessions = {line.session for line in lines}
        await until(lambda: self.history.ended >= sessions, "not every session ended")

    # -- the provider's side

    async def replacements(
        self, lines: Collection[ProducerSession], since: float
    ) -> list[ConnectionStats]:
        """Return each session's first socket that was opened after `since` and received audio.

        `since` is on the monotonic clock. Raises TurnbusError if a session has none.
        """
        names = {line.session for line in lines}
        found: dict[str, ConnectionStats] = {}

        def all_found() -> bool:
            for stats in self._stt.connections:
                name = _session(stats)
                if stats.opened_at >= since and stats.first_audio_at and name in names:
                    found.setdefault(name, stats)
            return found.keys() == names

        await until(all_found, "not every session got a socket again")
        return list(found.values())

    def link(self, line: ProducerSession) -> Link:
        """Return the connection of a session. Raises TurnbusError if there is not exactly one."""
        name = line.session.encode()
        links = [link for link in self._way.links if name in link.opening]
        if len(links) != 1:
            raise TurnbusError(f"{line.session} has {len(links)} sockets instead of one")
        return links[0]

    def _log(self, name: str) -> Path:
        return self._server.directory / f"{name}.log"


def _session(stats: ConnectionStats) -> str:
    return stats.params.keyterms[0] if stats.params and stats.params.keyterms else ""


async def until(come: Callable[[], bool], failure: str) -> None:
    """Wait for a condition. Raises TurnbusError with `failure` after a timeout."""
    deadline = time.monotonic() + _PATIENCE_S
    while not come():
        if time.monotonic() > deadline:
            raise TurnbusError(failure)
        await anyio.sleep(_LOOK_S)
