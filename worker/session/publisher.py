"""The event publisher: builds a session's events, numbers them, and hands them to the committer."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec
from msgspec import UNSET

from schemas import turns
from schemas.turns import encode_event, event_type
from worker.bus.ownership import OwnedSession
from worker.bus.scripts import ScriptCall, SessionCommits
from worker.context import WorkerContext
from worker.core.records import EventDraft, TurnTimes
from worker.errors import FencedError
from worker.session.checkpoint import CheckpointPayload, EventContext
from worker.telemetry.traces import SessionTrace

VERDICTS = frozenset({"ok", "fenced", "missing", "gap"})
"""Results that `commit.lua` returns."""


class EventPublisher:
    """Publishes one session's events in order, each exactly once, with one commit in flight."""

    __slots__ = (
        "_acknowledged",
        "_build_checkpoint",
        "_commit_calls",
        "_commits",
        "_committer",
        "_dirty",
        "_ended",
        "_ending",
        "_event_context",
        "_group",
        "_in_flight",
        "_payloads",
        "_pending",
        "_progress",
        "_run",
        "_session",
        "_stats",
        "_trimmed_before",
        "built_at",
        "fenced_reason",
        "lane",
        "name",
        "trace",
    )

    def __init__(
        self,
        context: WorkerContext,
        ownership: OwnedSession,
        seq: int,
        event_context: Callable[[], EventContext],
        build_checkpoint: Callable[[], CheckpointPayload],
    ) -> None:
        session = ownership.entry
        self.name = ownership.name
        self.lane = session.lane
        self.trace = SessionTrace(
            session.session, session.traceparent, session.tracestate, context.tracing
        )
        self._session, self._run = session.session, ownership.run
        self._group = session.group or UNSET
        fence, settings = ownership.fence, context.settings
        self._commit_calls = SessionCommits(
            **context.keys.of_session(session.lane, session.session),
            entry_id=fence.entry_id,
            delivery_count=fence.delivery_count,
            nonce=fence.nonce,
            session=session.session,
            out=session.out,
            retention_s=settings.retention_s,
            turns_retention_ms=settings.turns_retention_s * 1000,
            max_turns=settings.turns_maxlen,
        )
        self._committer = context.committer
        self._stats = context.stats
        self._event_context = event_context
        self._build_checkpoint = build_checkpoint
        # Events that are not committed yet. They are rarely more than one, and a deque takes 760
        # bytes.
        self._pending: list[tuple[float, float | None]] = []
        """When each was created, and when the speech of its turn ended, on the monotonic clock."""
        self._payloads: list[str | bytes] = []
        """Type, event and trace context of each, as arguments of the script."""
        self._acknowledged = seq
        self._in_flight: int | None = None  # events in the commit under way
        self._commits = 0
        self._trimmed_before = ""  # as of the last commit
        self.built_at = float("-inf")
        """Time at which the last commit was built, on the monotonic clock."""
        self._dirty = False
        self._ending = False
        self._ended = False
        self._progress: anyio.Event | None = None  # set by `wait_committed`
        self.fenced_reason: str | None = None
        """Why a commit was refused; no further event can be published."""

    def publish(
        self,
        drafts: Sequence[EventDraft],
        spoken_until: float | None = None,
        times: TurnTimes | None = None,
    ) -> None:
        """Publish the tracker's drafts.

        `spoken_until` is when the last sound of the ending turn was sent, on the monotonic clock;
        `times` are those of its words. Both are None if unknown.
        """
        for draft in drafts:
            common = self._common()
            at, turn, text = common["at"], draft.turn, draft.transcript or ""
            event: turns.Event
            self.trace.turn_updated(draft.kind)
            match draft.kind:
                case "turn.start":
                    self.trace.turn_started(turn, at)
                    event = turns.TurnStart(turn=turn, **common)
                case "turn.update":
                    event = turns.TurnUpdate(turn=turn, transcript=text, **common)
                case "turn.eager_end":
                    event = turns.TurnEagerEnd(turn=turn, transcript=text, **common)
                case "turn.resume":
                    event = turns.TurnResume(turn=turn, **common)
                case "turn.end":
                    reason = draft.reason or "model"
                    timed = {} if times is None else msgspec.structs.asdict(times)
                    event = turns.TurnEnd(
                        turn=turn, transcript=text, reason=reason, **timed, **common
                    )
            self._add(event, spoken_until if draft.kind == "turn.end" else None)
            if draft.kind == "turn.end":
                self.trace.turn_ended(draft.reason or "model", at, text)

    def publish_gap(self, missing_ms: int, reason: turns.GapReason) -> None:
        """Publish that audio will not be transcribed."""
        self._stats.gaps[reason] += 1
        self._stats.missing_ms[reason] += missing_ms
        self._add(turns.AudioGap(missing_ms=missing_ms, reason=reason, **self._common()))

    def publish_mark(self, mark: dict[str, Any], audio_ms: int) -> None:
        """Publish a mark of the producer's, at its place in the session's audio."""
        self._add(turns.SessionMark(mark=mark, **{**self._common(), "audio_ms": audio_ms}))

    def publish_error(
        self, code: str, message: str, *, status: int = 0, fatal: bool = False
    ) -> None:
        """Publish an error of the input or of the provider."""
        self._add(
            turns.SessionError(
                code=code, message=message, status=status, fatal=fatal, **self._common()
            )
        )

    def publish_end(
        self, reason: turns.SessionEndReason, turn_count: int, usage: dict[str, turns.Usage]
    ) -> None:
        """Publish the last event. Its commit deletes the audio and leaves a tombstone."""
        self._add(
            turns.SessionEnded(
                reason=reason, turns=turn_count, usage=usage or UNSET, **self._common()
            )
        )
        self._ending = True
        self.request_commit()

    def request_commit(self) -> None:
        """Commit pending events and the checkpoint; there may be no events."""
        self._dirty = True
        if self._in_flight is None and self.fenced_reason is None:
            self._committer.submit(self)

    def abort(self, why: str) -> None:
        """Build no further commit. One in flight may still be applied."""
        self.fenced_reason = self.fenced_reason or why
        self._notify_waiters()

    async def wait_committed(self) -> None:
        """Wait until everything added is committed. Raises `FencedError` if a commit is refused."""
        while self._dirty or self._in_flight is not None or (self._ending and not self._ended):
            if self.fenced_reason is not None:
                raise FencedError(self.fenced_reason)
            if self._progress is None:
                self._progress = anyio.Event()
            await self._progress.wait()

    def next_commit(self) -> ScriptCall | None:
        """Return the next commit (the committer calls this)."""
        if not self._dirty or self._in_flight is not None or self.fenced_reason is not None:
            return None
        self._dirty = False
        self.built_at = time.monotonic()
        self._in_flight = len(self._pending)
        self._commits += 1
        payload = self._build_checkpoint()
        trimmed_before, self._trimmed_before = self._trimmed_before, payload.trim_before
        return self._commit_calls.call(
            commit_number=self._commits,
            first_seq=self._acknowledged + 1,
            ending="end" if self._ending else "",
            snapshot=payload.checkpoint,
            # Inside a turn nothing new is committed: Redis need not trim again.
            trim_before="" if payload.trim_before == trimmed_before else payload.trim_before,
            events=self._payloads,
        )

    def on_commit_result(self, verdict: str, seq: int) -> None:
        """Handle the result of the commit in flight (the committer calls this)."""
        sent, self._in_flight = self._in_flight or 0, None
        expected = self._acknowledged + sent
        self._stats.commits[verdict if verdict in VERDICTS else "error"] += 1
        if verdict == "ok" and seq == expected:
            now = time.monotonic()
            for created_at, spoken_until in self._pending[:sent]:
                self._stats.commit_latency.observe(now - created_at)
                if spoken_until is not None:
                    self._stats.turn_latency.observe(now - spoken_until)
            del self._pending[:sent], self._payloads[: 3 * sent]
            self._acknowledged = expected
            self._ended = self._ending and not self._dirty
            if self._dirty:
                self._committer.submit(self)
        else:
            self.fenced_reason = verdict if verdict != "ok" else f"seq {seq} instead of {expected}"
        self._notify_waiters()

    def _add(self, event: turns.Event, spoken_until: float | None = None) -> None:
        """Queue an event, which was created from `_common`, and request its commit."""
        kind = event_type(event)
        self._stats.events[kind] += 1
        self._payloads += (kind, encode_event(event), self.trace.traceparent or "")
        self._pending.append((time.monotonic(), spoken_until))
        self.request_commit()

    def _common(self) -> dict[str, Any]:
        """Return the fields of every event, for the next one."""
        context = self._event_context()
        return {
            "session": self._session,
            "run": self._run,
            "seq": self._acknowledged + len(self._pending) + 1,
            "at": time.time(),
            "audio_ms": context.audio_ms,
            "provider": context.provider,
            "request_id": context.request_id,
            "connection": context.connection,
            "group": self._group,
        }

    def _notify_waiters(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None
