"""The worker: acquires sessions, renews their leases, releases them and stops."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
from worker.bus.breaker import Breakers
from worker.bus.cleanup import Cleaner
from worker.bus.client.connection import (
    RedisHealth,
    closing,
    connect,
    describe,
)
from worker.bus.clock import RedisClock
from worker.bus.committer import Committer
from worker.bus.dead_letters import DeadLetterWriter
from worker.bus.liveness import Liveness
from worker.bus.ownership import SessionLeases
from worker.bus.permissions import unfitness
from worker.bus.permits import ConnectionPermits
from worker.bus.registry import WorkerRegistry, delete_record, wait_for_drain
from worker.context import WorkerContext
from worker.event_loop import OverloadDetector
from worker.leases.acquire import CLAIM_POLL_MS, SessionAcquirer
from worker.leases.heartbeat import LeaseKeeper
from worker.leases.running import RunningSessions
from worker.session.session import Session
from worker.settings import Settings
from worker.stt.health import provider_health
from worker.stt.keys import ApiKey
from worker.stt.routes import find_routes
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing
from worker.text import pluralize
from worker.urls import provider_address

log = logging.getLogger(__name__)

MAX_CLAIM_BATCH = 50
HEARTBEAT_INTERVAL_S = 1.0
TICK_INTERVAL_S = 0.1
FITNESS_INTERVAL_S = 2.0
"""Interval between checks of a Redis that the worker cannot use."""

DEREGISTER_TIMEOUT_S = 2.0
"""Timeout for deleting the worker's record and consumer from Redis."""

DEAD_LETTERS_TIMEOUT_S = 2.0
"""Timeout for writing the last dead letters to Redis."""


class Worker:
    """One worker, running on one event loop.

    Raises `SettingsError` if the environment names a proxy that cannot be used.
    """

    def __init__(self, settings: Settings, api_keys: Mapping[str, ApiKey]) -> None:
        self._settings = settings
        self.redis: Redis = connect(settings.redis_url)
        self.health = RedisHealth()
        keys = Keys(settings.prefix)
        nonce = secrets.token_hex(8)
        leases = SessionLeases(self.redis, keys, f"{settings.worker_id}-{nonce[:8]}", nonce)
        stats = Counters()
        routes = find_routes(settings, api_keys, os.environ)
        names = [route.provider.name for route in routes]
        supervisor = Supervisor(stats.internal_errors)
        self.context = WorkerContext(
            settings=settings,
            redis=self.redis,
            keys=keys,
            health=self.health,
            clock=RedisClock(self.redis, self.health),
            leases=leases,
            reader=AudioReader(self.redis, self.health),
            committer=Committer(self.redis, self.health),
            permits=ConnectionPermits(self.redis, self.health, keys, settings.stt_max_connections),
            registry=WorkerRegistry(self.redis, self.health, keys),
            routes=routes,
            provider_health=provider_health(names),
            breakers=Breakers(self.redis, keys, leases.consumer, names),
            dead_letters=DeadLetterWriter(
                self.redis, self.health, keys, supervisor.isolate, stats.rejected_entries
            ),
            tracing=Tracing(
                *provider_address(routes[0].url),
                routes[0].provider.name,
                settings.trace_transcripts,
            ),
            stats=stats,
            supervisor=supervisor,
        )
        self.running = RunningSessions(self.context)
        self._overload = OverloadDetector()
        self._liveness = Liveness(self.redis, self.health, keys, leases)
        self._cleaner = Cleaner(self.redis, keys, leases)
        self._ready = False
        self._draining = False
        self._stop_now = False
        self._stopped = anyio.Event()
        self._waiting = anyio.CancelScope()

    # -- public interface

    @property
    def readiness(self) -> Readiness:
        """Whether the worker can take new sessions, and the reasons if it cannot."""
        context, limit = self.context, descriptors.limits()[0]
        shortfall = None if self.capacity else descriptors.shortfall(self._settings, limit)
        problems = (
            ("redis", self._redis_problem),
            ("stt", context.rejected_credentials),
            ("busy", self._overload.reason),
            ("shortage", context.shortage.reason),
            ("shortage", shortfall),
        )
        reasons = [f"{part}: {problem}" for part, problem in problems if problem]
        if not self._ready and not self._redis_problem:
            reasons.insert(0, "starting")
        if self._draining:
            reasons.insert(0, "draining")
        return Readiness(not reasons, tuple(reasons), len(self.running), self.capacity)

    @property
    def _redis_problem(self) -> str | None:
        return self.health.unfit or self.health.outage

    @property
    def capacity(self) -> int:
        """Maximum sessions of this worker: `max_sessions`, limited by available descriptors."""
        return descriptors.capacity(self._settings, descriptors.limits()[0])

    def drain(self) -> None:
        """Stop taking sessions, release the running ones, then wait for `stop`."""
        self._draining = True

    def stop(self) -> None:
        """Stop taking sessions, release the running ones and exit; a second call skips the wait."""
        self._stop_now = self._stopped.is_set()
        self._draining = True
        self._stopped.set()

    async def run(self) -> None:
        """Run until stopped and all sessions are released.

        Raises redis-py's NoPermissionError if the Redis user loses a required permission.
        """
        context = self.context
        async with closing(self.redis), anyio.create_task_group() as tasks:
            for part, work in (
                ("reader", context.reader.run),
                ("committer", context.committer.run),
                ("dead_letters", context.dead_letters.run),
                ("gate", context.permits.run),
                ("lanes", context.registry.list_lanes),
                ("ticker", self._tick),
                ("backlog", context.backlog.run),
                ("breakers", context.breakers.run),
            ):
                tasks.start_soon(context.supervisor.run_forever, part, work)
            if await self._run_until_stopped(self._connect_bus):
                async with anyio.create_task_group() as components:
                    await self._run_components(sessions=tasks, components=components)
                    await self._stopped.wait()
                    components.cancel_scope.cancel()
                async with anyio.create_task_group() as last_tasks:
                    last_tasks.start_soon(self._wait_for_dead_letters)
                    last_tasks.start_soon(self._deregister)
            tasks.cancel_scope.cancel()
        log.info("stopped")

    async def _run_components(self, sessions: TaskGroup, components: TaskGroup) -> None:
        """Take sessions until drained, then release them; `components` run until stopped."""
        run_forever = self.context.supervisor.run_forever
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
            renew = partial(lease_keeper.renew, may_claim=lambda: not self._draining)
            register = partial(self.health.retry, self._register)
            for part, work in (
                ("heartbeat", partial(_repeat, renew, HEARTBEAT_INTERVAL_S)),
                # Apart from the leases: a cluster may store the record on another server.
                ("worker_record", partial(_repeat, register, HEARTBEAT_INTERVAL_S)),
                ("clock", self.context.clock.run),
                ("liveness", self._liveness.advertise),
                ("liveness", self._liveness.watch),
                ("sweeper", self._cleaner.run),
                ("drain_requests", self._watch_drain_requests),
                ("handover", partial(_repeat, self._release_blocked, TICK_INTERVAL_S)),
                ("fitness", partial(_repeat, self._recheck_bus, FITNESS_INTERVAL_S)),
            ):
                components.start_soon(run_forever, part, work)
            acquire = partial(self._acquire_loop, acquirer)
            await self._run_until_stopped(partial(run_forever, "acquire", acquire))
            await self._release_all(acquirer)
            claims.cancel_scope.cancel()  # other workers take the sessions still waiting for Redis

    async def _run_until_stopped(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Run `work` without waiting for Redis once stopped; return whether it completed."""
        with anyio.CancelScope() as self._waiting:
            await work()
        return not self._waiting.cancelled_caught

    # -- Redis

    async def _connect_bus(self) -> None:
        """Wait until Redis is available and has all that a worker requires."""
        unfit = partial(unfitness, self.redis, self.context.keys)
        while True:
            try:
                lacking = await self.health.retry(unfit)
                if lacking is None:
                    await self.health.retry(self.context.leases.ensure_group)
            except ResponseError as error:
                lacking = describe(error)
            if lacking is None:
                self.health.fits()
                return
            self.health.lacks(lacking)
            await anyio.sleep(FITNESS_INTERVAL_S)

    async def _recheck_bus(self) -> None:
        """If Redis is unfit, wait until the worker can use it again."""
        if self.health.unfit is not None:
            await self._connect_bus()

    async def _register(self) -> None:
        """Update this worker's record."""
        state: Literal["ready", "draining", "unready"] = "ready"
        if not self.readiness.ready:
            state = "draining" if self._draining else "unready"
        leases, context = self.context.leases, self.context
        record = WorkerRecord(
            consumer=leases.consumer,
            host=socket.gethostname(),
            pid=os.getpid(),
            sessions=len(self.running),
            capacity=self.capacity,
            state=state,
            heartbeat=time.time(),
        )
        await context.registry.register(context.settings.worker_id, record)

    async def _deregister(self) -> None:
        """Delete this worker's record and consumer from Redis, if Redis is available."""
        leases, worker_id = self.context.leases, self.context.settings.worker_id
        with self.context.supervisor.isolate("handover"), anyio.move_on_after(DEREGISTER_TIMEOUT_S):
            for delete in (
                partial(leases.delete_consumer, leases.consumer),
                partial(delete_record, self.redis, self.context.keys, worker_id, leases.consumer),
            ):
                await self.health.retry(delete)

    async def _wait_for_dead_letters(self) -> None:
        with anyio.move_on_after(DEAD_LETTERS_TIMEOUT_S):
            await self.context.dead_letters.wait_written()

    # -- acquiring sessions

    async def _acquire_loop(self, acquirer: SessionAcquirer) -> None:
        self._ready = True
        context = self.context
        log.info("taking sessions as %s", context.leases.consumer)
        while not self._draining:
            acquirer.retry_crashed()  # regardless of room: this worker holds their leases
            if not len(self.running):
                # Without a session, no connection attempt would detect that the key works again.
                for health in context.provider_health.values():
                    health.credentials.retry_after_rejection()
            now = time.monotonic()
            context.shortage.look(now)
            taken = len(self.running) + len(context.retries.waiting) + acquirer.claims_in_progress
            room = min(MAX_CLAIM_BATCH, self.capacity - taken)
            if context.shortage.reason or context.rejected_credentials or self.health.unfit:
                room = 0
            else:
                room = context.shortage.room(self._overload.limit(room, now), now)
            if room > 0:
                await acquirer.start_all(await acquirer.find(room))
            else:
                await anyio.sleep(CLAIM_POLL_MS / 1000)

    # -- the ticker

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self.context.stalls.tick(now)
            if self._draining and self._redis_problem is not None:
                self._waiting.cancel()  # do not wait for Redis when draining
            for session in self.running:
                if session.fenced_reason is not None:
                    self.running.cancel(session.ownership.fence.entry_id)
                    continue
                if not session.is_due(now):
                    continue
                try:
                    session.tick(now)
                except Exception:  # it must not end the other sessions
                    log.exception("%s: session crashed", session.name)
                    session.fail()
            due = time.monotonic() + TICK_INTERVAL_S
            await anyio.sleep(TICK_INTERVAL_S)
            delay_s = max(0.0, time.monotonic() - due)
            self.context.stats.loop_delay.observe(delay_s)
            self._overload.observe(delay_s)

    # -- releasing sessions

    async def _watch_drain_requests(self) -> None:
        """Drain when an operator requests it.

        The process keeps running: an orchestrator would restart it, and it would take sessions.
        """
        keys, consumer = self.context.keys, self.context.leases.consumer
        try:
            await wait_for_drain(self.redis, self.health, keys, consumer)
        except NoPermissionError as error:
            log.warning(
                "drain requests disabled: grant the worker's Redis user the keys %s (%s)",
                keys.drain("*"),
                error,
            )
            return
        log.warning("draining: taking no more sessions, waiting to be stopped (`turnbus drain`)")
        self.drain()

    async def _release_all(self, acquirer: SessionAcquirer) -> None:
        """Release every session: between turns at once, inside a turn when the turn ends.

        Sessions still being claimed are released too, unless Redis is unavailable.
        """
        deadline = time.monotonic() + self._settings.drain_s
        if len(self.running):
            log.info("releasing %s", pluralize(len(self.running), "session"))
        late = False
        while len(self.running) or (acquirer.claims_in_progress and self.health.up and not late):
            late = self._stop_now or time.monotonic() >= deadline
            await self._release(each for each in self.running if late or each.can_release)
            await anyio.sleep(0.05)
        with self.context.supervisor.isolate("handover"):
            await self.running.release_waiting()

    async def _release_blocked(self) -> None:
        """Release sessions for which this machine cannot open a socket."""
        if self.context.shortage.reason is not None and not self._draining:
            await self._release(session for session in self.running if session.blocked_by_shortage)

    async def _release(self, sessions: Iterable[Session]) -> None:
        async def release(session: Session) -> None:
            with self.context.supervisor.isolate("handover"):
                await self.running.release(session)

        async with anyio.create_task_group() as tasks:
            for session in sessions:
                tasks.start_soon(release, session)


async def _repeat(step: Callable[[], Awaitable[None]], interval_s: float) -> None:
    while True:
        await step()
        await anyio.sleep(interval_s)
