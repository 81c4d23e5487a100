"""Environment of a chaos run: Redis on disk, the provider, a proxy to each, and the workers."""

import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from schemas.audio import ProviderName
from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from tests.chaos.plan import ChaosPlan
from worker.bench.proxy import Link, Proxy
from worker.bus.client.connection import RedisHealth
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.harness import Harness, child_environment
from worker.local.process import ChildProcess

T = TypeVar("T")

DRAIN_S: Final = 5.0
_STOP_TIMEOUT_S: Final = DRAIN_S + 10.0 + 5.0
"""Timeout after SIGTERM: the worker's limit, and a margin for a busy machine."""

_RESTART_S: Final = 1.0
"""Delay before a worker that ended unexpectedly is restarted."""

_LONG_PAUSE_S: Final = 8.0
"""Minimum length of a long pause, far longer than the default lease."""

_POLL_S: Final = 0.05


class Slot:
    """A worker id of the fleet, with its proxy to Redis and its successive processes."""

    def __init__(self, name: str, redis: Proxy, settings: Mapping[str, str]) -> None:
        self.name: Final = name
        self.redis: Final = redis
        self.environment: Final = child_environment({**settings, "WORKER_ID": name})
        self.processes: Final[list[ChildProcess]] = []
        """Running processes; two while one replaces the other."""
        self.started = 0


class Fleet:
    """Starts and ends workers; records every unexpected end."""

    def __init__(self, slots: list[Slot], logs: Path, tasks: TaskGroup, module: str) -> None:
        self.slots: Final = slots
        self.faults: Final[list[str]] = []
        """Errors of workers: an unexpected exit, a wrong exit code."""
        self._logs = logs
        self._tasks = tasks
        self._module = module
        self._expected: dict[ChildProcess, tuple[int, ...]] = {}

    async def start(self, slot: Slot) -> ChildProcess:
        """Start a process in a slot, in addition to a running one."""
        slot.started += 1
        name = f"{slot.name}.{slot.started}"
        stack = AsyncExitStack()
        process = await stack.enter_async_context(
            ChildProcess.start(
                name, ["run"], slot.environment, self._logs / f"{name}.log", module=self._module
            )
        )
        slot.processes.append(process)
        self._tasks.start_soon(self._supervise, slot, process, stack)
        return process

    async def _supervise(self, slot: Slot, process: ChildProcess, stack: AsyncExitStack) -> None:
        async with stack:
            code = await process.wait()
            slot.processes.remove(process)
            expected = self._expected.pop(process, ())
            if code not in expected:
                self.faults.append(
                    f"{process.name} ended with {code}; its last log lines:\n{process.tail()}"
                )
            if not expected:
                await anyio.sleep(_RESTART_S)
                await self.start(slot)

    @property
    def pids(self) -> set[int]:
        """Ids of the running processes."""
        return {process.pid for slot in self.slots for process in slot.processes}

    async def kill(self, process: ChildProcess) -> None:
        """Send SIGKILL and wait until the process ends."""
        if process.running:
            self._expected[process] = (-signal.SIGKILL,)
            process.signal(signal.SIGKILL)
            await process.wait()

    async def stop(self, process: ChildProcess, *, twice: bool = False) -> None:
        """Send SIGTERM and wait until the process ends; kill it after a timeout."""
        if not process.running:
            return
        # A process that is still loading its modules has no sessions and no signal handler.
        self._expected[process] = (0,) if process.text() else (0, -signal.SIGTERM)
        process.signal(signal.SIGTERM)
        if twice:
            await anyio.sleep(0.2)
            process.signal(signal.SIGTERM)
        with anyio.move_on_after(_STOP_TIMEOUT_S) as timeout:
            await process.wait()
        if timeout.cancelled_caught:
            process.signal(signal.SIGKILL)
            await process.wait()

    async def stop_all(self) -> None:
        """Stop every process."""
        async with anyio.create_task_group() as tasks:
            for slot in self.slots:
                for process in tuple(slot.processes):
                    tasks.start_soon(self.stop, process)

    @contextmanager
    def paused(self, process: ChildProcess) -> Iterator[None]:
        """Send SIGSTOP, and SIGCONT at the end of the block."""
        process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.signal(signal.SIGCONT)


class SttProvider(NamedTuple):
    """A provider: its local server, and the proxy through which all workers reach it."""

    server: TurnsServer
    proxy: Proxy


class Kill(NamedTuple):
    """A SIGKILL while another worker ran: its time in Unix milliseconds, and the owned sessions."""

    at_ms: int
    sessions: tuple[str, ...]


class ChaosHarness:
    """All parts of the run, which faults target, and the log of injected faults.

    Locks allow one fault at a time for each part.
    """

    def __init__(
        self, plan: ChaosPlan, local: Harness, stt: Mapping[str, SttProvider], fleet: Fleet
    ) -> None:
        self.server: Final = local.server
        self.redis: Final = local.redis
        """Direct client, for the run itself."""
        self.keys: Final = local.keys
        self.stt: Final = stt
        """The providers of the plan, by name."""
        self.fleet: Final = fleet
        self.plan: Final = plan
        self.lease_s: Final = plan.lease_ms / 1_000
        self.long_pause_s: Final = max(_LONG_PAUSE_S, 3 * self.lease_s)
        self.kills: Final[list[Kill]] = []
        self.outages_ms: Final[list[tuple[int, int]]] = []
        """Start and end of each Redis outage, in Unix milliseconds."""
        self.stt_outages_ms: Final[list[tuple[int, int]]] = []
        """Start and end of each provider outage, in Unix milliseconds."""
        self.log: Final[list[str]] = []
        """Injected faults, with their times."""
        self._locks: Final[defaultdict[str, anyio.Lock]] = defaultdict(anyio.Lock)
        self._health = RedisHealth()

    async def retry(self, command: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a command, which is repeated while Redis is not available."""
        return await self._health.retry(command)

    @asynccontextmanager
    async def lock(self, *names: str) -> AsyncIterator[None]:
        """Lock these parts against other faults, in the order of requests."""
        async with AsyncExitStack() as locks:
            for name in sorted(names):  # one order for all, which prevents deadlocks
                await locks.enter_async_context(self._locks[name])
            yield

    @asynccontextmanager
    async def worker(self, rng: Random) -> AsyncIterator[tuple[Slot, ChildProcess]]:
        """Choose and lock a worker; yield its slot and its process."""
        slot = rng.choice(self.fleet.slots)
        async with self.lock(slot.name):
            while not slot.processes:
                await anyio.sleep(_POLL_S)
            yield slot, slot.processes[-1]

    def is_free(self, slot: Slot) -> bool:
        """Return whether no fault has locked a worker."""
        return not self._locks[slot.name].locked()

    def note(self, what: str) -> None:
        """Log a fault with the current time."""
        self.log.append(f"{clock(now_ms())} {what}")

    async def sessions_of(self, process: ChildProcess) -> tuple[str, ...]:
        """Return the sessions that a process owns; empty if Redis is not available."""
        redis, sessions = self.redis, self.keys.sessions
        try:
            raw: Any = await redis.hvals(self.keys.workers)
            records = [msgspec.json.decode(record, type=WorkerRecord) for record in raw]
            consumers = [each.consumer for each in records if each.pid == process.pid]
            if not consumers:
                return ()
            rows: Any = await redis.xpending_range(
                sessions, GROUP, "-", "+", 1_000, consumername=consumers[0]
            )
            entries: Any = await redis.xrange(sessions)
        except (RedisError, OSError):
            return ()
        owned = {row["message_id"] for row in rows}
        return tuple(fields[b"session"].decode() for entry, fields in entries if entry in owned)


async def stall_links(links: set[Link], seconds: float, *, flows: bool) -> None:
    """Stall the links, then resume or cut them."""
    stalled = set(links)
    for link in stalled:
        link.stall()
    await anyio.sleep(seconds)
    for link in stalled:
        if flows:
            link.flow()
        else:
            link.cut()


def now_ms() -> int:
    """Return the current time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def clock(at_ms: int) -> str:
    """Format Unix milliseconds as the UTC time of day, as in the workers' logs."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_ms // 1_000))}.{at_ms % 1_000:03d}"


_URL_NAMES: Final[Mapping[ProviderName, str]] = {"cartesia": "STT_URL", "flux": "STT_FLUX_URL"}
"""Settings with the addresses of the providers."""


def _port_of(server: TurnsServer) -> Callable[[], int]:
    return lambda: server.port


@asynccontextmanager
async def open_harness(plan: ChaosPlan, logs: Path, module: str) -> AsyncIterator[ChaosHarness]:
    """Start everything including workers; clean up at the end, except for the logs.

    Raises LocalPartMissing or BusUnavailable as `EmbeddedRedis` does.
    """
    options = ScriptOptions(
        latency_ms=plan.latency_ms,
        rewording=plan.seed if plan.rewording else None,
        text_style=plan.text_style_name,
    )
    async with AsyncExitStack() as stack:
        disk = Harness.open(append_only=True, config={"appendfsync": "always"})
        local = await stack.enter_async_context(disk)
        urls: dict[str, str] = {}
        providers: dict[str, SttProvider] = {}
        for name, url_name in _URL_NAMES.items():
            limit = plan.connections or None
            settings = ServerSettings(port=0, provider=name, max_connections=limit)
            serving = TurnsServer.serve(settings, ScriptEngine(options))
            stt = await stack.enter_async_context(serving)
            proxy = await stack.enter_async_context(Proxy.open(_port_of(stt)))
            urls[url_name] = proxy.url(stt.url)
            if name in plan.provider_names:
                providers[name] = SttProvider(stt, proxy)
        proxies = [
            await stack.enter_async_context(Proxy.open(lambda: local.server.port))
            for _ in range(plan.workers)
        ]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        common = {
            **urls,
            "STT_MAX_CONNECTIONS": str(plan.connections),
            "LEASE_MS": str(plan.lease_ms),
            "DRAIN_S": str(DRAIN_S),
            "MAX_LAG_S": str(plan.max_lag_s),
            "ADMIN_ADDR": "",
        }
        slots = [
            Slot(
                f"worker-{number + 1}",
                proxy,
                {
                    **common,
                    "STT_PROVIDERS": ",".join(plan.providers_of(number)),
                    "REDIS_URL": proxy.url(local.server.url),
                },
            )
            for number, proxy in enumerate(proxies)
        ]
        fleet = Fleet(slots, logs, tasks, module)
        for slot in slots:
            await fleet.start(slot)
        yield ChaosHarness(plan, local, providers, fleet)
