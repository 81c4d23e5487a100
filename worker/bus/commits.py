"""Fenced commits: the writes of all sessions of a worker, batched into pipelines.

Each session has at most one commit in flight. One that was sent and not answered is sent again as
the same bytes before anything new of its session: the script skips what it had applied already.
"""

import logging
import time
from functools import partial
from typing import Protocol

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from worker.bus.connection import BusHealth, is_outage, patiently
from worker.bus.scripts import COMMIT, Arg
from worker.logs import SessionName

log = logging.getLogger(__name__)

BATCH = 256
"""Commits per pipeline."""

BATCH_EVERY_S = 0.01
"""Between batches: a busy worker's events go together, a lone session's come seldom enough."""

CRASHED = "crashed"
"""Why a session commits nothing more after a fault of ours: what it holds may be wrong."""


class Commit(msgspec.Struct, frozen=True):
    """Keys and arguments of one `commit.lua` call."""

    keys: tuple[str, ...]
    args: tuple[Arg, ...]


class Committing(Protocol):
    """A session that has something to commit."""

    @property
    def name(self) -> SessionName:
        """The session, as log lines name it."""
        ...

    def build(self) -> Commit | None:
        """Return what is to be written now, None if nothing is."""
        ...

    def settled(self, verdict: str, seq: int) -> None:
        """Take the script's answer; a verdict it does not document is an error of Redis."""
        ...

    def stop(self, why: str) -> None:
        """Commit nothing more."""
        ...


class Committer:
    """Sends commits of any number of sessions."""

    def __init__(self, redis: Redis, health: BusHealth) -> None:
        self._redis = redis
        self._health = health
        self._dirty: dict[Committing, None] = {}
        self._again: list[tuple[Committing, Commit]] = []
        self._wake = anyio.Event()

    def want(self, session: Committing) -> None:
        """Note that `session` has something to commit."""
        self._dirty[session] = None
        self._wake.set()

    async def run(self) -> None:
        """Send what sessions want sent, until cancelled."""
        while True:
            while self._dirty or self._again:
                began = time.monotonic()
                await self._send_some()
                await anyio.sleep(max(0.0, BATCH_EVERY_S - (time.monotonic() - began)))
            await self._wake.wait()
            self._wake = anyio.Event()

    async def _send_some(self) -> None:
        # Beside what was not answered: one node of a cluster may fail, and the others not.
        batch, self._again = self._again, []
        at_most = len(batch) + BATCH
        while self._dirty and len(batch) < at_most:
            session = next(iter(self._dirty))
            del self._dirty[session]
            try:
                commit = session.build()
            except Exception:  # a fault of ours must not take the other sessions down
                log.exception("%s: its commit cannot be built", session.name)
                session.stop(CRASHED)
                continue
            if commit is not None:
                batch.append((session, commit))
        if batch:
            self._again = await patiently(self._health, partial(self._attempt, batch))

    async def _attempt(
        self, batch: list[tuple[Committing, Commit]]
    ) -> list[tuple[Committing, Commit]]:
        """Send a batch once; settle what was answered and return what must be sent again."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, commit in batch:
                pipe.evalsha(COMMIT.sha, len(commit.keys), *commit.keys, *commit.args)
            replies = await pipe.execute(raise_on_error=False)
        again: list[tuple[Committing, Commit]] = []
        outage: RedisError | None = None
        for (session, commit), reply in zip(batch, replies, strict=True):
            if isinstance(reply, NoScriptError):
                again.append((session, commit))
            elif isinstance(reply, RedisError):
                if is_outage(reply):
                    outage = reply
                    again.append((session, commit))
                else:
                    session.settled(str(reply), 0)
            else:
                session.settled(reply[0].decode(), reply[1])
        if outage is not None:
            self._health.failed(outage)
            await anyio.sleep(0.2)
        elif again:
            await patiently(self._health, partial(COMMIT.load, self._redis))
        return again
