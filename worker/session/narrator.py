"""The narrator: builds a session's events and publishes them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from schemas import turns
from schemas.turns import event_type
from worker.bus.ownership import Ownership
from worker.context import WorkerContext
from worker.core.turn_tracker import EventDraft
from worker.session.publisher import CheckpointPayload, Publisher
from worker.stt.cartesia import PROVIDER
from worker.telemetry.traces import SessionTrace


class EventContext(msgspec.Struct, frozen=True):
    """Fields that describe the session's state when an event is created."""

    audio_ms: int
    request_id: str
    connection: int


class Narrator:
    """Builds one session's events."""

    def __init__(
        self,
        context: WorkerContext,
        ownership: Ownership,
        seq: int,
        event_context: Callable[[], EventContext],
        build_checkpoint: Callable[[], CheckpointPayload],
    ) -> None:
        session = ownership.entry
        self._ownership = ownership
        self._stats = context.stats
        self._event_context = event_context
        self.trace = SessionTrace(
            session.session, session.traceparent, session.tracestate, context.tracing
        )
        self.publisher = Publisher(
            ownership,
            seq,
            context.keys,
            context.retention,
            context.committer,
            context.stats,
            build_checkpoint,
        )

    def publish(self, drafts: Sequence[EventDraft], spoken_until: float | None = None) -> None:
        """Publish the tracker's drafts.

        `spoken_until` is when the last sound of the ending turn was sent, on the monotonic clock;
        None if unknown.
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
                    event = turns.TurnEnd(turn=turn, transcript=text, reason=reason, **common)
            self._add(event, spoken_until if draft.kind == "turn.end" else None)
            if draft.kind == "turn.end":
                self.trace.turn_ended(draft.reason or "model", at, text)

    def publish_gap(self, missing_ms: int, reason: turns.GapReason) -> None:
        """Publish that audio will not be transcribed."""
        self._stats.gaps[reason] += 1
        self._stats.missing_ms[reason] += missing_ms
        self._add(turns.AudioGap(missing_ms=missing_ms, reason=reason, **self._common()))

    def publish_error(
        self, code: str, message: str, *, status: int = 0, fatal: bool = False
    ) -> None:
        """Publish an error of the input or of the provider."""
        self._add(
            turns.SessionError(
                code=code, message=message, status=status, fatal=fatal, **self._common()
            )
        )

    def publish_end(self, reason: turns.SessionEndReason, turn_count: int) -> None:
        """Publish the last event."""
        self._add(turns.SessionEnded(reason=reason, turns=turn_count, **self._common()))
        self.publisher.finish()

    def _add(self, event: turns.Event, spoken_until: float | None = None) -> None:
        self._stats.events[event_type(event)] += 1
        self.publisher.add(event, self.trace.traceparent, spoken_until)

    def _common(self) -> dict[str, Any]:
        return {
            "session": self._ownership.entry.session,
            "run": self._ownership.run,
            "seq": self.publisher.next_seq,
            "at": time.time(),
            "provider": PROVIDER,
            **msgspec.structs.asdict(self._event_context()),
        }
