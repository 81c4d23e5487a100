"""Environment of a run: Redis, the STT server and its proxy, producer, reader and workers."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self

import anyio

from schemas.turns import Event
from worker.bench.events import EventLog
from worker.bench.plan import LATENCY_MS, RecoveryPlan
from worker.bench.producer import RecoveryProducer, RecoverySession
from worker.bench.proxy import Link, Proxy
from worker.errors import TurnbusError
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.harness import SPARE_FILES, Harness, allow_open_files
from worker.local.process import ChildProcess

_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.01
_OPEN_PER_S: Final = 50.0
_DISCOVERY_S: Final = 2.0
"""Delay until workers have seen each other alive, which failure detection requires."""


class RecoveryHarness:
    """All parts of a run; `open` starts them."""

    def __init__(self, local: Harness, stt: TurnsServer, proxy: Proxy, chunk_ms: int) -> None:
        self.redis: Final = local.redis
        self.keys: Final = local.keys
        self.event_log: Final = EventLog(local.redis, local.keys, ["0"])
        self.producer: Final = RecoveryProducer(local.server.port, local.keys, chunk_ms)
        self._local = local
        self._stt = stt
        self._proxy = proxy

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: RecoveryPlan) -> AsyncIterator[Self]:
        """Start everything except workers; clean up when the block ends.

        Raises LocalPartMissing or BusUnavailable as `EmbeddedRedis` does.
        """
        # A proxied socket uses three file descriptors of this process.
        most = max(plan.kill_sessions, plan.drain_sessions, 2 * plan.trials)
        allow_open_files(4 * most + SPARE_FILES)
        engine = ScriptEngine(ScriptOptions(latency_ms=LATENCY_MS))
        async with AsyncExitStack() as stack:
            local = await stack.enter_async_context(Harness.open())
            stt = await stack.enter_async_context(TurnsServer.serve(ServerSettings(port=0), engine))
            proxy = await stack.enter_async_context(Proxy.open(lambda: stt.port))
            harness = cls(local, stt, proxy, plan.chunk_ms)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(harness.event_log.run)
            tasks.start_soon(harness.producer.run)
            yield harness

    @asynccontextmanager
    async def worker(
        self, name: str, max_sessions: int, *, proxied: bool = False
    ) -> AsyncIterator[ChildProcess]:
        """Run a worker; yield it once its record is in Redis.

        Raises TurnbusError if it does not start.
        """
        stt_url = self._proxy.url(self._stt.url) if proxied else self._stt.url
        settings = {"STT_URL": stt_url, "MAX_SESSIONS": str(max_sessions), "ADMIN_ADDR": ""}
        async with self._local.worker(name, settings) as worker:
            await self._local.workers_ready(worker)
            yield worker

    @asynccontextmanager
    async def standby_worker(self, name: str, max_sessions: int) -> AsyncIterator[ChildProcess]:
        """Run a second worker, which will take over sessions."""
        async with self.worker(name, max_sessions) as worker:
            await anyio.sleep(_DISCOVERY_S)
            yield worker

    async def open_sessions(self, name: str, count: int) -> list[RecoverySession]:
        """Open sessions, one after the other."""
        sessions = []
        for number in range(count):
            sessions.append(self.producer.open(f"{name}-{number:04}"))
            await anyio.sleep(1 / _OPEN_PER_S)
        return sessions

    def events(self, session: RecoverySession) -> list[Event]:
        """Return the events published for a session so far."""
        return self.event_log.events(session.name)

    async def all_ended(self, sessions: Iterable[RecoverySession]) -> None:
        """Wait until every session ended. Raises TurnbusError if one does not."""
        names = {session.name for session in sessions}
        await until(lambda: self.event_log.ended >= names, "not every session ended")

    async def replacements(
        self, sessions: Collection[RecoverySession], since: float
    ) -> list[ConnectionStats]:
        """Return each session's first socket that was opened after `since` and received audio.

        `since` is on the monotonic clock. Raises TurnbusError if a session has none.
        """
        names = {session.name for session in sessions}
        found: dict[str, ConnectionStats] = {}

        def all_found() -> bool:
            for stats in self._stt.connections:
                name = stats.params.keyterms[0] if stats.params and stats.params.keyterms else ""
                if stats.opened_at >= since and stats.first_audio_at and name in names:
                    found.setdefault(name, stats)
            return found.keys() == names

        await until(all_found, "not every session got a socket again")
        return list(found.values())

    def link(self, session: RecoverySession) -> Link:
        """Return the connection of a session. Raises TurnbusError if there is not exactly one."""
        name = session.name.encode()
        links = [link for link in self._proxy.links if name in link.opening]
        if len(links) != 1:
            raise TurnbusError(f"{session.name} has {len(links)} sockets instead of one")
        return links[0]


async def until(condition: Callable[[], bool], failure: str) -> None:
    """Wait for a condition. Raises TurnbusError with `failure` after a timeout."""
    with anyio.move_on_after(_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - of several parts
            await anyio.sleep(_POLL_S)
        return
    raise TurnbusError(failure)
