"""The checkpoint: what a commit stores of a session, for its events and for its next owner."""

import time

import msgspec

from schemas.audio import SessionEntry, TurnConfig
from worker.core.lateness import Lateness, SentState
from worker.core.ledger import Ledger, LedgerState
from worker.core.notices import Notices, NoticesState
from worker.core.phases import Lifecycle
from worker.core.turn_boundary import ProviderLag
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnState, TurnTracker
from worker.session.publisher import CheckpointPayload, EventContext
from worker.session.sender import AudioSender

LAG_JITTER_MS = 250
"""Maximum difference of the provider's lag between two sockets."""


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


class SessionState:
    """The state of one session: its phase, and what outlives its sockets and its worker.

    It does not refer to the other parts of the session. Without reference cycles an ended session
    is freed at once, not by a later garbage collection.
    """

    def __init__(self, entry: SessionEntry, checkpoint: Checkpoint, max_lag_s: float) -> None:
        self.lifecycle = Lifecycle()
        bytes_per_ms = entry.sample_rate * entry.encoding.width / 1000
        self.ledger = Ledger(entry.encoding.width, checkpoint.ledger)
        self.tracker = TurnTracker(checkpoint.turns, int(LAG_JITTER_MS * bytes_per_ms))
        self.configs = TurnConfigHistory(checkpoint.config)
        self.lateness = Lateness(max_lag_s, checkpoint.sent_state)
        self.notices = Notices(checkpoint.notices)
        self.connection = checkpoint.connection
        """Number of the current socket, or of the last one."""
        self.request_id = checkpoint.request_id
        """The provider's id of that socket."""

    def connected(self, request_id: str) -> None:
        """Record a new socket and the request id that the provider gave it."""
        self.connection += 1
        self.request_id = request_id

    def rewind(self) -> None:
        """Go back to the committed position: entries after it are read again."""
        self.ledger.rewind()
        self.configs.rewind(self.ledger.committed.entry_id)

    def event_context(self, sender: AudioSender) -> EventContext:
        """Return the context of an event created now."""
        return EventContext(sender.session_ms, self.request_id, self.connection)

    def checkpoint(self, sender: AudioSender, provider_lag: ProviderLag) -> CheckpointPayload:
        """Return the checkpoint for the next commit."""
        committed = self.ledger.committed.entry_id
        checkpoint = Checkpoint(
            ledger=self.ledger.state,
            turns=self.tracker.state,
            config=self.configs.committed_before(committed),
            connection=self.connection,
            request_id=self.request_id,
            lag_s=provider_lag.seconds,
            sent=self.lateness.state(time.monotonic(), sender.session_bytes),
            notices=self.notices.state,
        )
        return CheckpointPayload(msgspec.json.encode(checkpoint), committed)
