"""The checkpoint: a session's state, for its events and for its next owner.

The checkpoint refers to the session's parts, and they do not refer to it. Without reference cycles
an ended session is freed at once, not by a later garbage collection.
"""

import time

import msgspec

from schemas.audio import TurnConfig
from worker.core.lateness import Lateness, SentState
from worker.core.ledger import Ledger, LedgerState
from worker.core.notices import Notices, NoticesState
from worker.core.turn_boundary import ProviderLag
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnState, TurnTracker
from worker.session.publisher import CheckpointPayload, EventContext
from worker.session.sender import AudioSender


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """State that the next owner needs."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    config: TurnConfig = TurnConfig()
    connection: int = 0
    request_id: str = ""
    lag_s: float | None = None
    """Provider lag as measured by the owner; None if it was not known."""
    notices: NoticesState = NoticesState()
    sent: SentState = SentState()

    @property
    def sent_state(self) -> SentState:
        """Minimum that was sent: everything up to the committed position and the published text.

        A worker of an earlier version does not write `sent`.
        """
        mark = self.turns.open.transcript_position if self.turns.open else 0
        until = max(self.sent.until, self.ledger.committed_bytes, mark)
        return msgspec.structs.replace(self.sent, until=until)


class CheckpointBuilder:
    """Builds the checkpoints of one session."""

    def __init__(
        self,
        snapshot: Checkpoint,
        ledger: Ledger,
        notices: Notices,
        lateness: Lateness,
        tracker: TurnTracker,
        configs: TurnConfigHistory,
        sender: AudioSender,
        provider_lag: ProviderLag,
    ) -> None:
        self._ledger = ledger
        self._lateness = lateness
        self._notices = notices
        self._tracker = tracker
        self._configs = configs
        self._sender = sender
        self._provider_lag = provider_lag
        self._connection = snapshot.connection
        self._request_id = snapshot.request_id

    def connected(self, request_id: str) -> None:
        """Record a new socket and the request id that the provider gave it."""
        self._connection += 1
        self._request_id = request_id

    def context(self) -> EventContext:
        """Return the context of an event created now."""
        return EventContext(self._sender.session_ms, self._request_id, self._connection)

    def build(self) -> CheckpointPayload:
        """Return the checkpoint for the next commit."""
        committed = self._ledger.committed.entry_id
        snapshot = Checkpoint(
            ledger=self._ledger.state,
            turns=self._tracker.state,
            config=self._configs.committed_before(committed),
            connection=self._connection,
            request_id=self._request_id,
            lag_s=self._provider_lag.seconds,
            sent=self._lateness.state(time.monotonic(), self._sender.session_bytes),
            notices=self._notices.state,
        )
        return CheckpointPayload(msgspec.json.encode(snapshot), committed)
