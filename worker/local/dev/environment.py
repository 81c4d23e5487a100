"""Processes of `turnbus dev`: an STT server and two workers, which run again after they are killed.

The faults are those of real life: a worker dies, a socket is lost, the provider is unreachable.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from worker.bus.inspection import session_owners
from worker.errors import TurnbusError
from worker.local.dev.provider import Provider
from worker.local.harness import QUICK_TAKEOVER, WORKERS, Harness, control_url
from worker.local.process import ChildProcess

RESTART_S: Final = 2.0
"""Time after which a killed worker is started again."""

OUTAGE_S: Final = 5.0
"""Duration of an outage of the provider."""

EngineName = Literal["speech", "script"]


class WorkerState(msgspec.Struct, frozen=True):
    """One worker and the sessions it owns."""

    id: str
    state: Literal["running", "starting", "killed"]
    sessions: list[str]


class ProviderState(msgspec.Struct, frozen=True):
    """The local STT server."""

    state: Literal["up", "away"]


class DevState(msgspec.Struct, frozen=True):
    """What runs now."""

    workers: list[WorkerState]
    provider: ProviderState
    engine: EngineName


class _Worker:
    """A worker id and its process, if one runs."""

    def __init__(self, worker_id: str) -> None:
        self.id: Final = worker_id
        self.state: Literal["running", "starting", "killed"] = "starting"
        self.process: ChildProcess | None = None


class DevEnvironment:
    """The processes beside Redis, their state, and the faults that a person may inject."""

    stt_url: str
    """URL of the STT server; set once `run` has started it."""

    def __init__(self, harness: Harness, engine: EngineName) -> None:
        self._harness = harness
        self._engine: Final = engine
        self._workers = [_Worker(worker_id) for worker_id in WORKERS]
        self._provider: Provider | None = None
        self._is_away = False
        self._tasks: TaskGroup | None = None
        self._changed = anyio.Event()

    @asynccontextmanager
    async def run(self, status: Callable[[str], None]) -> AsyncIterator[None]:
        """Run all processes until the block ends. `status` receives progress messages.

        Raises TurnbusError if a process does not start or stops by itself.
        """
        what = "loading the recognizer" if self._engine == "speech" else "starting the STT server"
        status(f"{what} ...")
        opening = self._harness.stt_server(self._engine, control=True)
        async with opening as (server, self.stt_url), anyio.create_task_group() as self._tasks:
            self._provider = Provider(control_url(server))
            status("starting two workers ...")
            self._tasks.start_soon(self._harness.server.guard)
            for worker in self._workers:
                self._tasks.start_soon(self._keep_running, worker)
            while any(worker.state != "running" for worker in self._workers):
                await self.changed()
            yield
            self._tasks.cancel_scope.cancel()

    async def state(self) -> DevState:
        """Return what runs now."""
        owners = await session_owners(self._harness.redis, self._harness.keys)
        sessions: dict[str, list[str]] = {worker.id: [] for worker in self._workers}
        for session, owner in owners.items():
            sessions.setdefault(owner, []).append(session)
        return DevState(
            [WorkerState(each.id, each.state, sessions[each.id]) for each in self._workers],
            ProviderState("away" if self._is_away else "up"),
            self._engine,
        )

    async def changed(self) -> None:
        """Wait until a process starts, is ready, or dies, or the provider leaves or returns."""
        await self._changed.wait()

    async def kill(self, session: str) -> str:
        """Kill the worker that owns a session with SIGKILL; return its id.

        Raises TurnbusError if no worker owns it.
        """
        owners = await session_owners(self._harness.redis, self._harness.keys)
        for worker in self._workers:
            if worker.id == owners.get(session) and worker.process is not None:
                worker.process.kill()
                return worker.id
        raise TurnbusError("no worker owns the session now: it has no audio yet, or it moves")

    async def cut(self) -> None:
        """Cut every socket between the workers and the provider."""
        await self._running_provider().cut()

    async def begin_outage(self) -> None:
        """Take the provider away for a short time. Raises TurnbusError if it is away already."""
        provider = self._running_provider()
        if self._is_away or self._tasks is None:
            raise TurnbusError("the provider is away already")
        await self._tasks.start(self._be_away, provider)

    def _running_provider(self) -> Provider:
        if self._provider is None:
            raise TurnbusError("the STT server is still starting")
        return self._provider

    async def _be_away(
        self, provider: Provider, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        async with provider.away():
            self._is_away = True
            self._notify()
            task_status.started()
            await anyio.sleep(OUTAGE_S)
        self._is_away = False
        self._notify()

    async def _keep_running(self, worker: _Worker) -> None:
        """Run a worker, and again after each time that it is killed."""
        settings = {"STT_URL": self.stt_url, **QUICK_TAKEOVER}
        while True:
            async with self._harness.worker(worker.id, settings) as worker.process:
                await self._harness.workers_ready(worker.process)
                self._set_state(worker, "running")
                code = await worker.process.wait()
                if code >= 0:  # not by a signal
                    await worker.process.guard()
            worker.process = None
            self._set_state(worker, "killed")
            await anyio.sleep(RESTART_S)
            self._set_state(worker, "starting")

    def _set_state(self, worker: _Worker, state: Literal["running", "starting", "killed"]) -> None:
        worker.state = state
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
