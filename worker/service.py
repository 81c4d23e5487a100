"""The worker's life: take sessions, keep their leases, hand them on, stop."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from worker import descriptors
from worker.addresses import service_address
from worker.admin import Readiness
from worker.arrivals import INTAKE_BLOCK_MS, Arrivals
from worker.bus.clock import BusClock
from worker.bus.commits import Committer
from worker.bus.connection import BusHealth, closing, connect, describe, patiently
from worker.bus.gate import Gate
from worker.bus.intake import Intake
from worker.bus.lanes import Lanes
from worker.bus.liveness import Liveness
from worker.bus.orders import until_drain
from worker.bus.reader import AudioReader
from worker.bus.rights import unfitness
from worker.bus.sweeper import Sweeper
from worker.host import Host, Pace, Undertaker
from worker.keepers import Faults
from worker.overload import Overload
from worker.plurals import counted
from worker.roster import Roster
from worker.sessions.publisher import Retention
from worker.sessions.session import Session
from worker.settings import Settings
from worker.stt.cartesia import PROVIDER, Service
from worker.stt.proxy import find_proxy
from worker.telemetry.spans import Tracing
from worker.telemetry.stats import Stats
from worker.tenure import Tenure

log = logging.getLogger(__name__)

CLAIM_AT_MOST = 50
HEARTBEAT_S = 1.0
TICK_S = 0.1
FITNESS_S = 2.0
"""Between looks at a Redis that cannot be worked with."""

LEAVE_S = 2.0
"""How long taking our record off the bus may take."""


class Worker:
    """One worker process's work, on one event loop.

    Raises `SettingsError` for a proxy in the environment that cannot be used.
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self.redis: Redis = connect(settings.redis_url)
        self.health = BusHealth()
        keys = Keys(settings.prefix)
        nonce = secrets.token_hex(8)
        intake = Intake(self.redis, keys, f"{settings.worker_id}-{nonce[:8]}", nonce)
        stats = Stats()
        faults = Faults(stats.faults)
        self.host = Host(
            worker_id=settings.worker_id,
            redis=self.redis,
            keys=keys,
            health=self.health,
            clock=BusClock(self.redis, self.health),
            intake=intake,
            reader=AudioReader(self.redis, self.health),
            committer=Committer(self.redis, self.health),
            gate=Gate(self.redis, self.health, keys, settings.stt_max_connections),
            lanes=Lanes(intake, self.health),
            retention=Retention(
                settings.retention_s, settings.turns_retention_s, settings.turns_maxlen
            ),
            service=Service(
                settings.stt_url,
                settings.stt_version,
                key,
                find_proxy(settings.stt_url, os.environ),
            ),
            model=settings.stt_model,
            turn=settings.turn_config,
            pace=Pace(
                settings.replay_speed,
                settings.park_s,
                settings.session_idle_s,
                settings.max_lag_s,
                settings.turn_update_interval_ms,
            ),
            undertaker=Undertaker(intake, self.health, faults),
            tracing=Tracing(
                *service_address(settings.stt_url), PROVIDER, settings.trace_transcripts
            ),
            stats=stats,
            faults=faults,
        )
        self.roster = Roster(self.host)
        self._overload = Overload()
        self._liveness = Liveness(self.redis, self.health, keys, intake)
        self._sweeper = Sweeper(self.redis, keys, intake)
        self._began = False
        self._draining = False
        self._hurry = False
        self._stopped = anyio.Event()
        self._waiting = anyio.CancelScope()

    # -- for whoever runs it

    @property
    def readiness(self) -> Readiness:
        """Whether new sessions can be taken."""
        reasons = [
            reason
            for reason in (
                "draining" if self._draining else None,
                f"redis: {self._redis_fault}" if self._redis_fault else None,
                "starting" if not self._began and not self._redis_fault else None,
                f"stt: {self.host.credentials.fault}" if self.host.credentials.fault else None,
                f"busy: {self._overload.fault}" if self._overload.fault else None,
                f"shortage: {self.host.shortage.fault}" if self.host.shortage.fault else None,
                None if self.capacity else f"shortage: {self._shortfall}",
            )
            if reason
        ]
        return Readiness(not reasons, tuple(reasons), len(self.roster), self.capacity)

    @property
    def _redis_fault(self) -> str | None:
        return self.health.unfit or self.health.fault

    @property
    def capacity(self) -> int:
        """How many sessions this worker takes: as set, and as many as it may open sockets for."""
        return descriptors.capacity(self._settings, descriptors.limits()[0])

    @property
    def _shortfall(self) -> str | None:
        return descriptors.shortfall(self._settings, descriptors.limits()[0])

    def drain(self) -> None:
        """Stop taking sessions, hand on those that run, and then do nothing until stopped."""
        self._draining = True

    def stop(self) -> None:
        """Stop taking sessions, hand on those that run, and end; called again: at once."""
        self._hurry = self._stopped.is_set()
        self._draining = True
        self._stopped.set()

    async def run(self) -> None:
        """Work until stopped and everything is handed on.

        Raises redis-py's NoPermissionError if a right is taken away from the Redis user.
        """
        async with closing(self.redis), anyio.create_task_group() as tasks:
            keep = self.host.faults.keep
            tasks.start_soon(keep, "reader", self.host.reader.run)
            tasks.start_soon(keep, "committer", self.host.committer.run)
            tasks.start_soon(keep, "undertaker", self.host.undertaker.run)
            tasks.start_soon(keep, "gate", self.host.gate.run)
            tasks.start_soon(keep, "lanes", self.host.lanes.run)
            tasks.start_soon(keep, "ticker", self._tick)
            tasks.start_soon(keep, "catch_up", self.host.catch_up.run)
            if await self._unless_stopped(self._reach_bus):
                async with anyio.create_task_group() as keepers:
                    await self._take_and_keep(sessions=tasks, keepers=keepers)
                    await self._stopped.wait()
                    keepers.cancel_scope.cancel()
                await self._leave()
            tasks.cancel_scope.cancel()
        log.info("stopped")

    async def _take_and_keep(self, sessions: TaskGroup, keepers: TaskGroup) -> None:
        """Take sessions until drained, then hand them on; what is kept is kept until stopped."""
        keep = self.host.faults.keep
        async with anyio.create_task_group() as claims:
            arrivals = Arrivals(
                self.host,
                self.roster,
                self._liveness,
                self._settings.lease_ms,
                sessions=sessions,
                claims=claims,
            )
            tenure = Tenure(self.host, self.roster, arrivals, keepers)
            keepers.start_soon(keep, "tenure", partial(self._keep, tenure))
            keepers.start_soon(keep, "record", self._keep_record)
            keepers.start_soon(keep, "clock", self.host.clock.run)
            keepers.start_soon(keep, "liveness", self._liveness.proclaim)
            keepers.start_soon(keep, "liveness", self._liveness.watch)
            keepers.start_soon(keep, "sweeper", self._sweeper.run)
            keepers.start_soon(keep, "orders", self._obey_drain)
            keepers.start_soon(keep, "handover", self._release_stranded)
            keepers.start_soon(keep, "fitness", self._watch_fitness)
            take = partial(self._take_sessions, arrivals)
            await self._unless_stopped(partial(keep, "arrivals", take))
            await self._hand_on(arrivals)
            claims.cancel_scope.cancel()  # whoever has room takes what waits for Redis still

    async def _leave(self) -> None:
        """Take this worker off the bus, if the bus lets us."""
        intake = self.host.intake
        with self.host.faults.contained("handover"), anyio.move_on_after(LEAVE_S):
            await patiently(self.health, lambda: intake.retire(intake.consumer))
            await patiently(
                self.health, lambda: intake.forget(self.host.worker_id, intake.consumer)
            )

    async def _reach_bus(self) -> None:
        """Wait for Redis, and until it is one that a worker can work with."""
        while True:
            if not await self._is_unfit():
                return
            await anyio.sleep(FITNESS_S)

    async def _is_unfit(self) -> bool:
        """Find out whether Redis can be worked with, and note what it lacks."""
        unfit = partial(unfitness, self.redis, self.host.keys)
        try:
            lacking = await patiently(self.health, unfit)
            if lacking is None:
                await patiently(self.health, self.host.intake.ensure_group)
        except ResponseError as error:
            lacking = describe(error)
        if lacking is None:
            self.health.fits()
        else:
            self.health.lacks(lacking)
        return lacking is not None

    async def _watch_fitness(self) -> None:
        """Find out when a Redis that became unfit can be worked with again."""
        while True:
            await anyio.sleep(FITNESS_S)
            if self.health.unfit is not None:
                await self._is_unfit()

    async def _unless_stopped(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do `work`, but do not wait for Redis once stopped; return whether it was done."""
        with anyio.CancelScope() as self._waiting:
            await work()
        return not self._waiting.cancelled_caught

    # -- taking sessions, and keeping them

    async def _take_sessions(self, arrivals: Arrivals) -> None:
        self._began = True
        log.info("taking sessions as %s", self.host.intake.consumer)
        crashes, shortage = self.host.crashes, self.host.shortage
        while not self._draining:
            arrivals.try_again()  # whatever room there is: nobody else may take them
            taken = len(self.roster) + len(crashes.held) + arrivals.under_way
            room = min(CLAIM_AT_MOST, self.capacity - taken)
            if not len(self.roster):
                self.host.credentials.doubt()  # nobody is left to find out that they are good again
            shortage.look(time.monotonic())
            faults = (shortage.fault, self.host.credentials.fault, self.health.unfit)
            if not any(faults):
                room = self._overload.room(room, time.monotonic())
                room = shortage.room(room, time.monotonic())
            else:
                room = 0
            if room <= 0:
                await anyio.sleep(INTAKE_BLOCK_MS / 1000)
                continue
            await arrivals.take_all(await arrivals.look_for(room))

    async def _keep(self, tenure: Tenure) -> None:
        while True:
            await tenure.beat(takes=lambda: not self._draining)
            await anyio.sleep(HEARTBEAT_S)

    async def _keep_record(self) -> None:
        """Keep this worker's record: apart from the leases, for its server may be another."""
        while True:
            await patiently(self.health, self._register)
            await anyio.sleep(HEARTBEAT_S)

    async def _register(self) -> None:
        state: Literal["ready", "draining", "unready"] = "ready"
        if not self.readiness.ready:
            state = "draining" if self._draining else "unready"
        await self.host.intake.register(
            self.host.worker_id,
            WorkerRecord(
                consumer=self.host.intake.consumer,
                host=socket.gethostname(),
                pid=os.getpid(),
                sessions=len(self.roster),
                capacity=self.capacity,
                state=state,
                heartbeat=time.time(),
            ),
        )

    # -- the ticker

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self.host.wakefulness.look(now)
            if self._draining and self._redis_fault is not None:
                self._waiting.cancel()  # for Redis, and there is nothing to do with it any more
            for session in self.roster:
                if session.refused is not None:
                    self.roster.drop(session.ownership.fence.entry)
                else:
                    _guarded(session, session.tick, now)
            due = time.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            delay_s = max(0.0, time.monotonic() - due)
            self.host.stats.loop_delay.observe(delay_s)
            self._overload.observe(delay_s)

    # -- handing them on

    async def _obey_drain(self) -> None:
        """Drain once an operator says so.

        And do not end: whatever keeps workers running would start this one again, and it would
        take sessions.
        """
        keys, consumer = self.host.keys, self.host.intake.consumer
        try:
            await until_drain(self.redis, self.health, keys, consumer)
        except NoPermissionError as error:
            log.warning(
                "`turnbus drain` cannot reach this worker: grant its Redis user the keys %s (%s)",
                keys.drain("*"),
                error,
            )
            return
        log.warning("told to drain; takes no session any more, and waits to be stopped")
        self.drain()

    async def _hand_on(self, arrivals: Arrivals) -> None:
        """Give every session back: at once between turns, at the end of a turn inside one.

        Those that are still being taken in, too, unless Redis keeps them from it.
        """
        deadline = time.monotonic() + self._settings.drain_s
        if len(self.roster):
            log.info("handing on %s", counted(len(self.roster), "session"))
        late = False
        while len(self.roster) or (arrivals.under_way and self.health.up and not late):
            late = self._hurry or time.monotonic() >= deadline
            ready = [session for session in self.roster if late or session.may_move]
            async with anyio.create_task_group() as tasks:
                for session in ready:
                    tasks.start_soon(self._give_back, session)
            await anyio.sleep(0.05)
        with self.host.faults.contained("handover"):
            await self.roster.give_back_held()

    async def _release_stranded(self) -> None:
        """Let other workers take the sessions for which this machine cannot open a socket."""
        while True:
            await anyio.sleep(TICK_S)
            if self.host.shortage.fault is None or self._draining:
                continue
            async with anyio.create_task_group() as tasks:
                for session in self.roster:
                    if session.stranded:
                        tasks.start_soon(self._give_back, session)

    async def _give_back(self, session: Session) -> None:
        with self.host.faults.contained("handover"):
            await self.roster.give_back(session)


def _guarded(session: Session, step: Callable[[float], None], now: float) -> None:
    """Take a step of a session; a fault of ours in it must not take the others down."""
    try:
        step(now)
    except Exception:
        log.exception("%s: session crashed", session.name)
        session.crashed()
