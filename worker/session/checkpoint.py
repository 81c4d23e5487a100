"""The checkpoint: what a commit stores of a session, for its events and for its next owner.

mypyc cannot compile classes of msgspec, so they are apart from the state of a session.
"""

from typing import cast

import msgspec

from schemas.audio import TurnConfig
from schemas.turns import Usage
from worker.core.ledger import Ledger
from worker.core.notices import NoticesState
from worker.core.records import LedgerState, SentState, TurnState


class EventContext(msgspec.Struct, frozen=True):
    """Fields that describe the session's state when an event is created."""

    audio_ms: int
    provider: str
    request_id: str
    connection: int


class CheckpointPayload(msgspec.Struct, frozen=True):
    """Checkpoint written with the events of one commit, for the next owner."""

    checkpoint: bytes
    """The checkpoint as JSON."""
    trim_before: str
    """Id below which the audio stream may be trimmed."""


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """State that the next owner needs."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    config: TurnConfig = TurnConfig()
    connection: int = 0
    provider: str = ""
    """Name of the provider of the last socket; empty before the first."""
    request_id: str = ""
    lag_s: float | None = None
    """Provider lag as measured by the owner; None if it was not known."""
    notices: NoticesState = NoticesState()
    sent: SentState = SentState()
    usage: dict[str, Usage] = {}
    """Usage by provider."""

    @property
    def sent_state(self) -> SentState:
        """Minimum that was sent: everything up to the committed position and the published text.

        A worker of an earlier version does not write `sent`.
        """
        mark = self.turns.open.transcript_position if self.turns.open else 0
        until = max(self.sent.until, self.ledger.committed_bytes, mark)
        return msgspec.structs.replace(self.sent, until=until)


_encode = msgspec.json.Encoder().encode


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Encode a checkpoint as JSON."""
    return _encode(checkpoint)


class LedgerEncoder:
    """Encodes the state of one session's ledger, whenever it has changed.

    It is most of a checkpoint, and changes only at a turn's start and end: to collect and encode it
    for every event took half of the time of a checkpoint.
    """

    __slots__ = ("_encoded", "_key", "_ledger")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._key: tuple[int, str, str | None] | None = None
        self._encoded = msgspec.Raw()

    @property
    def state(self) -> LedgerState:
        """The state for a checkpoint that is encoded now: as JSON, which msgspec copies."""
        key = self._ledger.state_key
        if key != self._key:
            self._encoded, self._key = msgspec.Raw(_encode(self._ledger.state)), key
        return cast("LedgerState", self._encoded)
