"""The state of a session, and the checkpoint that a commit stores of it."""

import time

from schemas.audio import SessionEntry
from schemas.turns import Usage
from worker.core.lateness import Lateness
from worker.core.ledger import Ledger
from worker.core.notices import Notices
from worker.core.phases import Lifecycle
from worker.core.turn_boundary import ProviderLag
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnTracker
from worker.core.usage import UsageLog
from worker.session.checkpoint import (
    Checkpoint,
    CheckpointPayload,
    EventContext,
    LedgerEncoder,
    encode_checkpoint,
)
from worker.session.sender import AudioSender

LAG_JITTER_MS = 250
"""Maximum difference of the provider's lag between two sockets."""


class SessionState:
    """The state of one session: its phase, and what outlives its sockets and its worker.

    It does not refer to the other parts of the session. Without reference cycles an ended session
    is freed at once, not by a later garbage collection.
    """

    __slots__ = (
        "_ledger_encoder",
        "configs",
        "connection",
        "lateness",
        "ledger",
        "lifecycle",
        "next_tick_at",
        "notices",
        "provider",
        "request_id",
        "tracker",
        "usage",
        "words",
    )

    def __init__(
        self, entry: SessionEntry, checkpoint: Checkpoint, max_lag_s: float, provider: str
    ) -> None:
        """Continue at `checkpoint`; `provider` is the name of the first socket's provider."""
        self.lifecycle = Lifecycle()
        bytes_per_ms = entry.sample_rate * entry.encoding.width / 1000
        self.ledger = Ledger(entry.encoding.width, checkpoint.ledger)
        self._ledger_encoder = LedgerEncoder(self.ledger)
        self.tracker = TurnTracker(checkpoint.turns, int(LAG_JITTER_MS * bytes_per_ms))
        self.configs = TurnConfigHistory(checkpoint.config)
        self.lateness = Lateness(max_lag_s, checkpoint.sent_state)
        self.usage = UsageLog(1_000 * bytes_per_ms, checkpoint.usage)
        self.words = entry.words
        """Whether the session asked for the words of its turns."""
        self.notices = Notices(checkpoint.notices)
        self.connection = checkpoint.connection
        """Number of the current socket, or of the last one."""
        self.provider = checkpoint.provider or provider
        """Name of that socket's provider."""
        self.request_id = checkpoint.request_id
        """The provider's id of that socket."""
        self.next_tick_at = 0.0
        """Time before which no deadline has to be checked; 0 if something changed."""

    def connected(self, provider: str, request_id: str) -> None:
        """Record a new socket, its provider, and the request id that the provider gave it."""
        self.connection += 1
        self.provider = provider
        self.request_id = request_id

    def rewind(self) -> None:
        """Go back to the committed position: entries after it are read again."""
        self.ledger.rewind()
        self.configs.rewind(self.ledger.committed.entry_id)

    def event_context(self, sender: AudioSender) -> EventContext:
        """Return the context of an event created now."""
        return EventContext(sender.session_ms, self.provider, self.request_id, self.connection)

    def usage_so_far(self, sender: AudioSender) -> dict[str, Usage]:
        """Return what the session used of each provider."""
        return self.usage.state(time.monotonic(), *sender.usage)

    def checkpoint(self, sender: AudioSender, provider_lag: ProviderLag) -> CheckpointPayload:
        """Return the checkpoint for the next commit."""
        committed = self.ledger.committed.entry_id
        checkpoint = Checkpoint(
            ledger=self._ledger_encoder.state,
            turns=self.tracker.state,
            config=self.configs.committed_before(committed),
            connection=self.connection,
            provider=self.provider,
            request_id=self.request_id,
            lag_s=provider_lag.seconds,
            sent=self.lateness.state(time.monotonic(), sender.session_bytes),
            notices=self.notices.state,
            usage=self.usage_so_far(sender),
        )
        return CheckpointPayload(encode_checkpoint(checkpoint), committed)
