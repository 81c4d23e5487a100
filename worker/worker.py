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
from worker.admin import Readiness
from worker.bus.audio_reader import AudioReader
from worker.bus.cleanup import Cleaner
from worker.bus.client.connection import (
    RedisHealth,
    closing,
    connect,
    describe,
    retry_while_unavailable,
)
from worker.bus.clock import RedisClock
from worker.bus.committer import Committer
from worker.bus.drain_requests import wait_for_drain
from worker.bus.lanes import LaneRegistry
from worker.bus.liveness import Liveness
from worker.bus.ownership import SessionOwnership
from worker.bus.permissions import unfitness
from worker.bus.permits import ConnectionPermits
from worker.context import DeadLetterWriter, SessionTimeouts, WorkerContext
from worker.event_loop import OverloadDetector
from worker.leases.acquire import CLAIM_POLL_MS, SessionAcquirer
from worker.leases.heartbeat import LeaseKeeper
from worker.leases.running import RunningSessions
from worker.plurals import counted
from worker.session.publisher import Retention
from worker.session.session import Session
from worker.settings import Settings
from worker.stt.cartesia import PROVIDER, Endpoint
from worker.stt.proxy import find_proxy
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing
from worker.urls import provider_address

log = logging.getLogger(__name__)

MAX_CLAIM_BATCH = 50
HEARTBEAT_INTERVAL_S = 1.0
TICK_INTERVAL_S = 0.1
FITNESS_S = 2.0
"""Between looks at a Redis that cannot be worked with."""

DEREGISTER_TIMEOUT_S = 2.0
"""How long taking our record off the bus may take."""


class Worker:
    """One worker process's work, on one event loop.

    Raises `SettingsError` for a proxy in the environment that cannot be used.
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self.redis: Redis = connect(settings.redis_url)
        self.health = RedisHealth()
        keys = Keys(settings.prefix)
        nonce = secrets.token_hex(8)
        intake = SessionOwnership(self.redis, keys, f"{settings.worker_id}-{nonce[:8]}", nonce)
        stats = Counters()
        faults = Supervisor(stats.internal_errors)
        self.context = WorkerContext(
            worker_id=settings.worker_id,
            redis=self.redis,
            keys=keys,
            health=self.health,
            clock=RedisClock(self.redis, self.health),
            ownership=intake,
            reader=AudioReader(self.redis, self.health),
            committer=Committer(self.redis, self.health),
            permits=ConnectionPermits(self.redis, self.health, keys, settings.stt_max_connections),
            lanes=LaneRegistry(intake, self.health),
            retention=Retention(
                settings.retention_s, settings.turns_retention_s, settings.turns_maxlen
            ),
            endpoint=Endpoint(
                settings.stt_url,
                settings.stt_version,
                key,
                find_proxy(settings.stt_url, os.environ),
            ),
            model=settings.stt_model,
            turn=settings.turn_config,
            timeouts=SessionTimeouts(
                settings.replay_speed,
                settings.park_s,
                settings.session_idle_s,
                settings.max_lag_s,
                settings.turn_update_interval_ms,
            ),
            dead_letters=DeadLetterWriter(intake, self.health, faults),
            tracing=Tracing(
                *provider_address(settings.stt_url), PROVIDER, settings.trace_transcripts
            ),
            stats=stats,
            supervisor=faults,
        )
        self.running = RunningSessions(self.context)
        self._overload = OverloadDetector()
        self._liveness = Liveness(self.redis, self.health, keys, intake)
        self._cleaner = Cleaner(self.redis, keys, intake)
        self._ready = False
        self._draining = False
        self._stop_now = False
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
                "starting" if not self._ready and not self._redis_fault else None,
                f"stt: {self.context.credentials.reason}"
                if self.context.credentials.reason
                else None,
                f"busy: {self._overload.reason}" if self._overload.reason else None,
                f"shortage: {self.context.shortage.fault}" if self.context.shortage.fault else None,
                None if self.capacity else f"shortage: {self._shortfall}",
            )
            if reason
        ]
        return Readiness(not reasons, tuple(reasons), len(self.running), self.capacity)

    @property
    def _redis_fault(self) -> str | None:
        return self.health.unfit or self.health.outage

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
        self._stop_now = self._stopped.is_set()
        self._draining = True
        self._stopped.set()

    async def run(self) -> None:
        """Work until stopped and everything is handed on.

        Raises redis-py's NoPermissionError if a right is taken away from the Redis user.
        """
        async with closing(self.redis), anyio.create_task_group() as tasks:
            keep = self.context.supervisor.run_forever
            tasks.start_soon(keep, "reader", self.context.reader.run)
            tasks.start_soon(keep, "committer", self.context.committer.run)
            tasks.start_soon(keep, "dead_letters", self.context.dead_letters.run)
            tasks.start_soon(keep, "gate", self.context.permits.run)
            tasks.start_soon(keep, "lanes", self.context.lanes.run)
            tasks.start_soon(keep, "ticker", self._tick)
            tasks.start_soon(keep, "backlog", self.context.backlog.run)
            if await self._run_until_stopped(self._connect_bus):
                async with anyio.create_task_group() as components:
                    await self._run_components(sessions=tasks, components=components)
                    await self._stopped.wait()
                    components.cancel_scope.cancel()
                await self._deregister()
            tasks.cancel_scope.cancel()
        log.info("stopped")

    async def _run_components(self, sessions: TaskGroup, components: TaskGroup) -> None:
        """Take sessions until drained, then hand them on; what is kept is kept until stopped."""
        keep = self.context.supervisor.run_forever
        async with anyio.create_task_group() as claims:
            acquirer = SessionAcquirer(
                self.context,
                self.running,
                self._liveness,
                self._settings.lease_ms,
                sessions=sessions,
                claims=claims,
            )
            lease_keeper = LeaseKeeper(self.context, self.running, acquirer, components)
            components.start_soon(keep, "heartbeat", partial(self._heartbeat_loop, lease_keeper))
            components.start_soon(keep, "worker_record", self._record_loop)
            components.start_soon(keep, "clock", self.context.clock.run)
            components.start_soon(keep, "liveness", self._liveness.advertise)
            components.start_soon(keep, "liveness", self._liveness.watch)
            components.start_soon(keep, "sweeper", self._cleaner.run)
            components.start_soon(keep, "drain_requests", self._watch_drain_requests)
            components.start_soon(keep, "handover", self._release_stranded)
            components.start_soon(keep, "fitness", self._watch_fitness)
            take = partial(self._acquire_loop, acquirer)
            await self._run_until_stopped(partial(keep, "acquire", take))
            await self._release_all(acquirer)
            claims.cancel_scope.cancel()  # whoever has room takes what waits for Redis still

    async def _deregister(self) -> None:
        """Take this worker off the bus, if the bus lets us."""
        intake = self.context.ownership
        with self.context.supervisor.isolate("handover"), anyio.move_on_after(DEREGISTER_TIMEOUT_S):
            await retry_while_unavailable(
                self.health, lambda: intake.delete_consumer(intake.consumer)
            )
            await retry_while_unavailable(
                self.health, lambda: intake.delete_record(self.context.worker_id, intake.consumer)
            )

    async def _connect_bus(self) -> None:
        """Wait for Redis, and until it is one that a worker can work with."""
        while True:
            if not await self._is_unfit():
                return
            await anyio.sleep(FITNESS_S)

    async def _is_unfit(self) -> bool:
        """Find out whether Redis can be worked with, and note what it lacks."""
        unfit = partial(unfitness, self.redis, self.context.keys)
        try:
            lacking = await retry_while_unavailable(self.health, unfit)
            if lacking is None:
                await retry_while_unavailable(self.health, self.context.ownership.ensure_group)
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

    async def _run_until_stopped(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do `work`, but do not wait for Redis once stopped; return whether it was done."""
        with anyio.CancelScope() as self._waiting:
            await work()
        return not self._waiting.cancelled_caught

    # -- taking sessions, and keeping them

    async def _acquire_loop(self, acquirer: SessionAcquirer) -> None:
        self._ready = True
        log.info("taking sessions as %s", self.context.ownership.consumer)
        crashes, shortage = self.context.retries, self.context.shortage
        while not self._draining:
            acquirer.retry_crashed()  # whatever room there is: nobody else may take them
            taken = len(self.running) + len(crashes.waiting) + acquirer.claims_in_progress
            room = min(MAX_CLAIM_BATCH, self.capacity - taken)
            if not len(self.running):
                # No session is left that would find out that the key is accepted again.
                self.context.credentials.retry_after_rejection()
            shortage.look(time.monotonic())
            faults = (shortage.fault, self.context.credentials.reason, self.health.unfit)
            if not any(faults):
                room = self._overload.limit(room, time.monotonic())
                room = shortage.room(room, time.monotonic())
            else:
                room = 0
            if room <= 0:
                await anyio.sleep(CLAIM_POLL_MS / 1000)
                continue
            await acquirer.claim_all(await acquirer.find(room))

    async def _heartbeat_loop(self, lease_keeper: LeaseKeeper) -> None:
        while True:
            await lease_keeper.renew(takes=lambda: not self._draining)
            await anyio.sleep(HEARTBEAT_INTERVAL_S)

    async def _record_loop(self) -> None:
        """Keep this worker's record: apart from the leases, for its server may be another."""
        while True:
            await retry_while_unavailable(self.health, self._register)
            await anyio.sleep(HEARTBEAT_INTERVAL_S)

    async def _register(self) -> None:
        state: Literal["ready", "draining", "unready"] = "ready"
        if not self.readiness.ready:
            state = "draining" if self._draining else "unready"
        await self.context.ownership.register(
            self.context.worker_id,
            WorkerRecord(
                consumer=self.context.ownership.consumer,
                host=socket.gethostname(),
                pid=os.getpid(),
                sessions=len(self.running),
                capacity=self.capacity,
                state=state,
                heartbeat=time.time(),
            ),
        )

    # -- the ticker

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self.context.stalls.tick(now)
            if self._draining and self._redis_fault is not None:
                self._waiting.cancel()  # for Redis, and there is nothing to do with it any more
            for session in self.running:
                if session.fenced_reason is not None:
                    self.running.cancel(session.ownership.fence.entry_id)
                else:
                    _guard(session, session.tick, now)
            due = time.monotonic() + TICK_INTERVAL_S
            await anyio.sleep(TICK_INTERVAL_S)
            delay_s = max(0.0, time.monotonic() - due)
            self.context.stats.loop_delay.observe(delay_s)
            self._overload.observe(delay_s)

    # -- handing them on

    async def _watch_drain_requests(self) -> None:
        """Drain once an operator says so.

        And do not end: whatever keeps workers running would start this one again, and it would
        take sessions.
        """
        keys, consumer = self.context.keys, self.context.ownership.consumer
        try:
            await wait_for_drain(self.redis, self.health, keys, consumer)
        except NoPermissionError as error:
            log.warning(
                "`turnbus drain` cannot reach this worker: grant its Redis user the keys %s (%s)",
                keys.drain("*"),
                error,
            )
            return
        log.warning("told to drain; takes no session any more, and waits to be stopped")
        self.drain()

    async def _release_all(self, acquirer: SessionAcquirer) -> None:
        """Give every session back: at once between turns, at the end of a turn inside one.

        Those that are still being taken in, too, unless Redis keeps them from it.
        """
        deadline = time.monotonic() + self._settings.drain_s
        if len(self.running):
            log.info("handing on %s", counted(len(self.running), "session"))
        late = False
        while len(self.running) or (acquirer.claims_in_progress and self.health.up and not late):
            late = self._stop_now or time.monotonic() >= deadline
            ready = [session for session in self.running if late or session.can_release]
            async with anyio.create_task_group() as tasks:
                for session in ready:
                    tasks.start_soon(self._release, session)
            await anyio.sleep(0.05)
        with self.context.supervisor.isolate("handover"):
            await self.running.release_waiting()

    async def _release_stranded(self) -> None:
        """Let other workers take the sessions for which this machine cannot open a socket."""
        while True:
            await anyio.sleep(TICK_INTERVAL_S)
            if self.context.shortage.fault is None or self._draining:
                continue
            async with anyio.create_task_group() as tasks:
                for session in self.running:
                    if session.stranded:
                        tasks.start_soon(self._release, session)

    async def _release(self, session: Session) -> None:
        with self.context.supervisor.isolate("handover"):
            await self.running.release(session)


def _guard(session: Session, step: Callable[[float], None], now: float) -> None:
    """Take a step of a session; a fault of ours in it must not take the others down."""
    try:
        step(now)
    except Exception:
        log.exception("%s: session crashed", session.name)
        session.fail()
