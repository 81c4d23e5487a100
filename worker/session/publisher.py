"""The publisher: numbers and stamps a session's events and hands them to the committer."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec

from schemas.keys import Keys
from schemas.turns import Event, encode_event, event_type
from worker.bus.committer import CommitRequest, Committer
from worker.bus.ownership import Ownership
from worker.errors import FencedError
from worker.telemetry.counters import Counters

VERDICTS = frozenset({"ok", "fenced", "missing", "gap"})
"""Results that `commit.lua` returns."""


class Retention(msgspec.Struct, frozen=True):
    """How long a session's keys are kept."""

    state_s: int
    turns_s: int
    turns_maxlen: int


class CheckpointPayload(msgspec.Struct, frozen=True):
    """Checkpoint written with the events of one commit, for the next owner."""

    snapshot: bytes
    trim_before: str
    """Id below which the audio stream may be trimmed."""


class _PendingEvent(NamedTuple):
    """An event that is not committed yet."""

    payload: tuple[str, bytes, str]
    """Type, event and trace context, as arguments of the script."""
    at: float
    """Time of creation, on the monotonic clock."""
    spoken_until: float | None


class Publisher:
    """Publishes one session's events in order, each exactly once, with one commit in flight."""

    def __init__(
        self,
        ownership: Ownership,
        seq: int,
        keys: Keys,
        retention: Retention,
        committer: Committer,
        stats: Counters,
        build_checkpoint: Callable[[], CheckpointPayload],
    ) -> None:
        session = ownership.entry
        self.name = ownership.name
        self.lane = session.lane
        self._keys = keys.of_session(session.lane, session.session)
        self._ownership = ownership
        self._retention = retention
        self._committer = committer
        self._build_checkpoint = build_checkpoint
        self._queue: deque[_PendingEvent] = deque()
        self._acknowledged = seq
        self._in_flight = -1  # events in the commit under way; -1 without one
        self._commits = 0
        self.built_at = float("-inf")
        """Time at which the last commit was built, on the monotonic clock."""
        self._dirty = False
        self._ending = False
        self._ended = False
        self._progress: anyio.Event | None = None  # set by `wait_committed`
        self.fenced_reason: str | None = None
        """Why a commit was refused; no further event can be published."""
        self._stats = stats

    @property
    def next_seq(self) -> int:
        """Sequence number of the next event."""
        return self._acknowledged + len(self._queue) + 1

    def add(self, event: Event, traceparent: str | None, spoken_until: float | None = None) -> None:
        """Publish `event`, which was created with `next_seq`.

        `spoken_until` is when the last sound of its turn was sent, on the monotonic clock.
        """
        payload = (event_type(event), encode_event(event), traceparent or "")
        self._queue.append(_PendingEvent(payload, time.monotonic(), spoken_until))
        self.request_commit()

    def request_commit(self) -> None:
        """Commit pending events and the checkpoint; there may be no events."""
        self._dirty = True
        if self._in_flight < 0 and self.fenced_reason is None:
            self._committer.submit(self)

    def finish(self) -> None:
        """End the session with the next commit, which deletes the audio and leaves a tombstone."""
        self._ending = True
        self.request_commit()

    def abort(self, why: str) -> None:
        """Build no further commit. One in flight may still be applied."""
        self.fenced_reason = self.fenced_reason or why
        self._notify_waiters()

    async def wait_committed(self) -> None:
        """Wait until everything added is committed. Raises `FencedError` if a commit is refused."""
        while self._dirty or self._in_flight >= 0 or (self._ending and not self._ended):
            if self.fenced_reason is not None:
                raise FencedError(self.fenced_reason)
            if self._progress is None:
                self._progress = anyio.Event()
            await self._progress.wait()

    def next_commit(self) -> CommitRequest | None:
        """Return the next commit (the committer calls this)."""
        if not self._dirty or self._in_flight >= 0 or self.fenced_reason is not None:
            return None
        self._dirty = False
        self.built_at = time.monotonic()
        self._in_flight = len(self._queue)
        self._commits += 1
        fence, session = self._ownership.fence, self._ownership.entry
        checkpoint = self._build_checkpoint()
        return CommitRequest(
            self._keys,
            (
                fence.entry_id,
                fence.delivery_count,
                fence.nonce,
                session.session,
                session.out,
                checkpoint.snapshot,
                checkpoint.trim_before,
                "end" if self._ending else "",
                self._retention.state_s,
                self._retention.turns_s * 1000,
                self._retention.turns_maxlen,
                self._commits,
                self._acknowledged + 1,
                *(part for pending in self._queue for part in pending.payload),
            ),
        )

    def on_commit_result(self, verdict: str, seq: int) -> None:
        """Handle the result of the commit in flight (the committer calls this)."""
        sent, self._in_flight = self._in_flight, -1
        expected = self._acknowledged + sent
        self._stats.commits[verdict if verdict in VERDICTS else "error"] += 1
        if verdict == "ok" and seq == expected:
            now = time.monotonic()
            for _ in range(sent):
                pending = self._queue.popleft()
                self._stats.commit_latency.observe(now - pending.at)
                if pending.spoken_until is not None:
                    self._stats.turn_latency.observe(now - pending.spoken_until)
            self._acknowledged = expected
            self._ended = self._ending and not self._dirty
            if self._dirty:
                self._committer.submit(self)
        else:
            self.fenced_reason = verdict if verdict != "ok" else f"seq {seq} instead of {expected}"
        self._notify_waiters()

    def _notify_waiters(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None
