"""Fenced commits: the writes of all sessions of a worker, in batches.

Each session has at most one commit in flight. An unanswered commit is sent again as the same bytes
before the session's next one; the script skips what it has applied already.

Each master of a cluster has its own batches: a master that hangs delays only its own lanes.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from worker.bus import scripts
from worker.bus.client.cluster import Address, ClusterClient
from worker.bus.client.connection import RedisHealth, is_outage
from worker.bus.client.wire import Wire
from worker.bus.scripts import ScriptCall
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

MAX_BATCH = 256
"""Maximum number of new commits per batch."""

BATCH_INTERVAL_S = 0.01
"""Minimum interval between batches: a busy worker's commits share a write."""

CRASHED = "crashed"
"""Reason for which a session stops committing after an internal error: its state may be wrong."""


class CommitSource(Protocol):
    """A session that has something to commit."""

    name: SessionName
    """Name of the session in log lines."""
    lane: str
    """Lane of the session, which determines the master of its keys."""

    def next_commit(self) -> ScriptCall | None:
        """Return the next call of `commit.lua`; None if there is none, or if one is in flight."""

    def on_commit_result(self, verdict: str, seq: int) -> None:
        """Handle the script's reply; an undocumented verdict is the text of a Redis error."""

    def abort(self, why: str) -> None:
        """Stop committing."""


class Committer:
    """Sends the commits of all sessions."""

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
        self._batcher(server).add(session)

    def _batcher(self, server: Address | None) -> "_CommitBatcher":
        if server not in self._batchers:
            self._batchers[server] = _CommitBatcher(self._redis, self._health)
            self._wake.set()
        return self._batchers[server]

    async def run(self) -> None:
        """Send commits until cancelled."""
        sending: set[Address | None] = set()
        if not isinstance(self._redis, ClusterClient):
            self._batcher(None)
        async with anyio.create_task_group() as tasks:
            while True:
                self._wake = anyio.Event()
                for server in self._batchers.keys() - sending:
                    sending.add(server)
                    tasks.start_soon(self._batchers[server].run)
                await self._wake.wait()


class _CommitBatcher:
    """Commits to one server. While slots move, the client redirects them to the right one."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._wire = None if isinstance(redis, ClusterClient) else Wire(redis)
        self._was_read_only = False  # whether the last batch met a server that is no master
        self._dirty: dict[CommitSource, None] = {}
        self._unanswered: dict[CommitSource, ScriptCall] = {}
        self._wake = anyio.Event()

    def add(self, session: CommitSource) -> None:
        """Build and send the next commit of `session`."""
        self._dirty[session] = None
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            if self._wire is not None:
                await self._health.retry(self._wire.connect)
            while True:
                while self._dirty or self._unanswered:
                    began = time.monotonic()
                    await self._send_batch()
                    await anyio.sleep(max(0.0, BATCH_INTERVAL_S - (time.monotonic() - began)))
                await self._wake.wait()
                self._wake = anyio.Event()
        finally:
            if self._wire is not None:
                self._wire.close()

    async def _send_batch(self) -> None:
        # New commits join unanswered ones: one slot may be down while the server's others are up.
        at_most = len(self._unanswered) + MAX_BATCH
        while self._dirty and len(self._unanswered) < at_most:
            session = next(iter(self._dirty))
            del self._dirty[session]
            try:
                commit = session.next_commit()
            except Exception:  # an internal error must not end the other sessions
                log.exception("%s: internal error while building a commit, stopping", session.name)
                session.abort(CRASHED)
                continue
            if commit is not None:
                self._unanswered[session] = commit
        if self._unanswered:
            await self._health.retry(self._attempt)

    async def _attempt(self) -> None:
        """Send all unanswered commits once, and deliver the replies."""
        batch = [*self._unanswered.items()]
        replies = await self._exchange([commit for _, commit in batch])
        read_only = any(isinstance(reply, ReadOnlyError) for reply in replies)
        if self._was_read_only and not read_only and self._wire is not None:
            # Its name leads to the master again. Wires that reconnected before may be elsewhere.
            self._wire.replace_all()
        self._was_read_only = read_only
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
            await self._load_script()
        if isinstance(outage, RedisConnectionError | ReadOnlyError):
            raise outage  # it is the whole server's
        if outage is not None:
            self._health.failed(outage)
            await anyio.sleep(0.2)

    async def _load_script(self) -> None:
        """Load the script into the server that lacks it: an address may lead to another one."""
        if self._wire is None:
            await scripts.commit.load(self._redis)
            return
        command: tuple[Any, ...] = ("SCRIPT", "LOAD", scripts.commit.text)
        (reply,) = await self._wire.exchange(pack_command(command), 1)
        if isinstance(reply, RedisError):
            raise reply

    async def _exchange(self, commits: Sequence[ScriptCall]) -> list[Any]:
        """Send commits, and return the reply or the error of each."""
        if self._wire is not None:
            packed = b"".join([pack_command(("EVALSHA", *commit)) for commit in commits])
            return await self._wire.exchange(packed, len(commits))
        async with self._redis.pipeline(transaction=False) as pipe:
            for commit in commits:
                pipe.evalsha(*commit)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


def _deliver_result(session: CommitSource, reply: Any) -> None:  # noqa: ANN401 - the script's reply, or an error
    try:
        if isinstance(reply, RedisError):
            session.on_commit_result(str(reply), 0)
        else:
            session.on_commit_result(reply[0].decode(), reply[1])
    except Exception:  # an internal error must not end the other sessions
        log.exception("%s: internal error on the reply to a commit, stopping", session.name)
        session.abort(CRASHED)
