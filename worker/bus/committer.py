"""Fenced commits: the writes of all sessions of a worker, batched into pipelines.

Each session has at most one commit in flight. One that was sent and not answered is sent again as
the same bytes before anything new of its session: the script skips what it had applied already.

Each master of a cluster has batches of its own: one that hangs, for as long as a socket may, holds
up nobody but its own lanes.
"""

import logging
import time
from typing import Any, Protocol

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from worker.bus.client.cluster import Address, ClusterClient
from worker.bus.client.connection import RedisHealth, is_outage, retry_while_unavailable
from worker.bus.scripts import COMMIT, Arg
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

MAX_BATCH = 256
"""Commits per pipeline."""

BATCH_INTERVAL_S = 0.01
"""Between batches: a busy worker's events go together, a lone session's come seldom enough."""

INTERNAL_ERROR = "crashed"
"""Why a session commits nothing more after a fault of ours: what it holds may be wrong."""


class CommitRequest(msgspec.Struct, frozen=True):
    """Keys and arguments of one `commit.lua` call."""

    keys: tuple[str, ...]
    args: tuple[Arg, ...]


class CommitSource(Protocol):
    """A session that has something to commit."""

    @property
    def name(self) -> SessionName:
        """The session, as log lines name it."""
        ...

    @property
    def lane(self) -> str:
        """Its lane, and so who holds its keys."""
        ...

    def next_commit(self) -> CommitRequest | None:
        """Return what is to be written now, None if nothing is, or a commit is in flight."""
        ...

    def on_commit_result(self, verdict: str, seq: int) -> None:
        """Take the script's answer; a verdict it does not document is an error of Redis."""
        ...

    def abort(self, why: str) -> None:
        """Commit nothing more."""
        ...


class Committer:
    """Sends commits of any number of sessions."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._batchers: dict[Address | None, _CommitBatcher] = {}
        self._wake = anyio.Event()

    def submit(self, session: CommitSource) -> None:
        """Note that `session` has something to commit."""
        server = None
        if isinstance(self._redis, ClusterClient):
            server = self._redis.cached_address(f"{{{session.lane}}}")
        if server not in self._batchers:
            self._batchers[server] = _CommitBatcher(self._redis, self._health)
            self._wake.set()
        self._batchers[server].add(session)

    async def run(self) -> None:
        """Send what sessions want sent, until cancelled."""
        sending: set[Address | None] = set()
        async with anyio.create_task_group() as tasks:
            while True:
                self._wake = anyio.Event()
                for server in self._batchers.keys() - sending:
                    sending.add(server)
                    tasks.start_soon(self._batchers[server].run)
                await self._wake.wait()


class _CommitBatcher:
    """Commits to one server, as far as is known: where slots move they find the right one."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._dirty: dict[CommitSource, None] = {}
        self._unanswered: dict[CommitSource, CommitRequest] = {}
        self._wake = anyio.Event()

    def add(self, session: CommitSource) -> None:
        """Build and send the next commit of `session`."""
        self._dirty[session] = None
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while self._dirty or self._unanswered:
                began = time.monotonic()
                await self._send_batch()
                await anyio.sleep(max(0.0, BATCH_INTERVAL_S - (time.monotonic() - began)))
            await self._wake.wait()
            self._wake = anyio.Event()

    async def _send_batch(self) -> None:
        # Beside what was not answered: a slot may be away, and the server's others not.
        at_most = len(self._unanswered) + MAX_BATCH
        while self._dirty and len(self._unanswered) < at_most:
            session = next(iter(self._dirty))
            del self._dirty[session]
            try:
                commit = session.next_commit()
            except Exception:  # a fault of ours must not take the other sessions down
                log.exception("%s: its commit cannot be built", session.name)
                session.abort(INTERNAL_ERROR)
                continue
            if commit is not None:
                self._unanswered[session] = commit
        if self._unanswered:
            await retry_while_unavailable(self._health, self._attempt)

    async def _attempt(self) -> None:
        """Send once what is not answered, and settle what is then."""
        batch = [*self._unanswered.items()]
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, commit in batch:
                pipe.evalsha(COMMIT.sha, len(commit.keys), *commit.keys, *commit.args)
            replies = await pipe.execute(raise_on_error=False)
        unknown = False
        outage: RedisError | None = None
        for (session, _), reply in zip(batch, replies, strict=True):
            if isinstance(reply, NoScriptError):
                unknown = True
            elif isinstance(reply, RedisError) and is_outage(reply):
                outage = reply
            else:
                del self._unanswered[session]
                _deliver_result(session, reply)
        if unknown:
            await COMMIT.load(self._redis)
        if outage is not None:
            self._health.failed(outage)
            await anyio.sleep(0.2)


def _deliver_result(session: CommitSource, reply: Any) -> None:  # noqa: ANN401 - the script's, or an error
    try:
        if isinstance(reply, RedisError):
            session.on_commit_result(str(reply), 0)
        else:
            session.on_commit_result(reply[0].decode(), reply[1])
    except Exception:  # a fault of ours must not take the other sessions down
        log.exception("%s: crashed on the answer to its commit", session.name)
        session.abort(INTERNAL_ERROR)
