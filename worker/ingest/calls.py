"""The calls of this process: which are live, which are taken, and when all have ended."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self
from uuid import uuid4

import anyio
import anyio.abc
from redis.asyncio import Redis

from schemas import Keys, SessionEntry
from worker.bus.client.connection import RedisHealth
from worker.ingest.appender import SessionAppender
from worker.ingest.call import Call as Call  # part of this interface
from worker.ingest.call import CallLimits as CallLimits
from worker.ingest.call import CallRefusedError as CallRefusedError
from worker.ingest.counters import IngestCounters
from worker.ingest.pipeline import AppendPipeline
from worker.ingest.records import Started

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 5.0
"""Maximum time for the last appends of the calls that a drain ends."""


class Calls:
    """The calls of this process: `async with Calls(...) as calls`."""

    def __init__(
        self, redis: Redis, keys: Keys, limits: CallLimits, counters: IngestCounters
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._limits = limits
        self._counters = counters
        self._pipeline = AppendPipeline(redis)
        self._health = RedisHealth()
        self._of_session: dict[tuple[str, str], Call] = {}
        self._running: set[Call] = set()
        self._call_ended = anyio.Event()
        self._draining = False
        self._stack = AsyncExitStack()

    @property
    def redis_up(self) -> bool:
        """Whether Redis answered the last append."""
        return self._health.up

    @property
    def draining(self) -> bool:
        """Whether no new calls are taken."""
        return self._draining

    @property
    def count(self) -> int:
        """Number of calls that have not ended, or have entries that are not appended yet."""
        return len(self._running)

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(_cancelled_at_exit())
        self._tasks.start_soon(self._pipeline.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once; what is not appended is lost. `drain` comes before."""
        await self._stack.__aexit__(kind, error, traceback)

    def open(self, started: Started, protocol: str = "raw") -> Call:
        """Open a call, or continue the one whose socket was lost.

        Raises `CallRefusedError` if the process is full or draining, or if another socket has one
        of the sessions.
        """
        try:
            return self._open(started, protocol)
        except CallRefusedError as error:
            self._counters.refused[str(error.status)] += 1
            raise

    def _open(self, started: Started, protocol: str) -> Call:
        ids = _ids(started.sessions)
        if not ids or len({*ids}) < len(ids):
            raise CallRefusedError(400, "a call needs at least one session, and an id for each")
        for each in ids:
            call = self._of_session.get(each)
            if call is None:
                continue
            if not call.waits_for_return or _ids(call.sessions) != ids:
                raise CallRefusedError(409, f"session {each[1]} is live; use one id per call")
            call.resume(started.sessions)
            return call
        if self._draining:
            raise CallRefusedError(503, "this process is shutting down; try again")
        if len(self._running) >= self._limits.max_calls:
            limit = self._limits.max_calls
            raise CallRefusedError(503, f"this process has its maximum of {limit} calls")
        src = uuid4().hex
        appenders = [
            SessionAppender(self._redis, self._pipeline, self._keys, each, self._health, src)
            for each in started.sessions
        ]
        call = Call(started, protocol, src, appenders, self._limits, self._counters)
        self._of_session.update(dict.fromkeys(ids, call))
        self._running.add(call)
        self._counters.calls_open[protocol] += 1
        self._counters.calls_total[protocol] += 1
        self._tasks.start_soon(self._run, call)
        log.info("call %s: started (%s)", call.name, protocol)
        return call

    async def drain(self, timeout_s: float) -> None:
        """Take no new calls, and return when all have ended.

        After the timeout, the calls that go on are ended: their sockets close with the process.
        """
        self._draining = True
        with anyio.move_on_after(timeout_s):
            await self._until_idle()
        for call in self._running:
            call.end("drained")
        with anyio.move_on_after(FLUSH_TIMEOUT_S):
            await self._until_idle()
        for call in self._running:
            log.error("call %s: not all of its audio is appended, Redis is away", call.name)

    async def _until_idle(self) -> None:
        while self._running:
            await self._call_ended.wait()

    async def _run(self, call: Call) -> None:
        try:
            await call.run()
        except Exception:  # an error of one call must not end the others
            log.exception("call %s: internal error, its session ends when it is idle", call.name)
            self._counters.internal_errors += 1
            call.fail()
        finally:
            self._close(call)

    def _close(self, call: Call) -> None:
        self._running.discard(call)
        for each in _ids(call.sessions):
            del self._of_session[each]
        self._counters.calls_open[call.protocol] -= 1
        reason = call.end_reason or "drained"  # cancelled without a drain
        if reason != "internal":
            if not call.has_audio:
                reason = "silent"
            elif call.over:
                reason = "over"
        self._counters.calls_ended[reason] += 1
        log.info("call %s: ended (%s)", call.name, reason)
        self._call_ended.set()
        self._call_ended = anyio.Event()


@asynccontextmanager
async def _cancelled_at_exit() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Open a task group whose tasks are cancelled at the end of the block."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


def _ids(sessions: tuple[SessionEntry, ...]) -> tuple[tuple[str, str], ...]:
    """Return lane and id of each session."""
    return tuple((each.lane, each.session) for each in sessions)
