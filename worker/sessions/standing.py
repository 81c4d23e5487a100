"""Where a session stands: what its events say of that, and what its next owner is told.

Knows the session's parts and is not known by them, so that all of a session that ended goes at
once, and does not wait for a garbage collection in rings of references.
"""

import time

import msgspec

from schemas.audio import TurnConfig
from worker.core.configs import Configs
from worker.core.lag import UsualLag
from worker.core.lateness import Lateness, SentState
from worker.core.ledger import Ledger, LedgerState
from worker.core.notices import Notices, NoticesState
from worker.core.turns import TurnState, TurnTracker
from worker.sessions.narrator import Place
from worker.sessions.publisher import Written
from worker.sessions.uplink import Uplink


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that the next owner must know."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    config: TurnConfig = TurnConfig()
    connection: int = 0
    request_id: str = ""
    lag_s: float | None = None
    """How late its owner knew the service to be; None if it did not know."""
    notices: NoticesState = NoticesState()
    sent: SentState = SentState()

    @property
    def sent_state(self) -> SentState:
        """Return what was sent, at least: up to the committed position and all published text.

        A worker of an earlier version does not write `sent`.
        """
        mark = self.turns.open.mark if self.turns.open else 0
        until = max(self.sent.until, self.ledger.committed_bytes, mark)
        return msgspec.structs.replace(self.sent, until=until)


class Standing:
    """Tells where one session stands."""

    def __init__(
        self,
        snapshot: Snapshot,
        ledger: Ledger,
        notices: Notices,
        lateness: Lateness,
        tracker: TurnTracker,
        configs: Configs,
        uplink: Uplink,
        usual_lag: UsualLag,
    ) -> None:
        self._ledger = ledger
        self._lateness = lateness
        self._notices = notices
        self._tracker = tracker
        self._configs = configs
        self._uplink = uplink
        self._usual_lag = usual_lag
        self._connection = snapshot.connection
        self._request_id = snapshot.request_id

    def connected(self, request_id: str) -> None:
        """Note that the session got a socket, by the name the service gave it."""
        self._connection += 1
        self._request_id = request_id

    def place(self) -> Place:
        """Say where an event made now stands."""
        return Place(self._uplink.fed_ms, self._request_id, self._connection)

    def written(self) -> Written:
        """Say what goes with the events of the next commit."""
        committed = self._ledger.committed.entry
        snapshot = Snapshot(
            ledger=self._ledger.state,
            turns=self._tracker.state,
            config=self._configs.settled_before(committed),
            connection=self._connection,
            request_id=self._request_id,
            lag_s=self._usual_lag.seconds,
            sent=self._lateness.state(time.monotonic(), self._uplink.fed),
            notices=self._notices.state,
        )
        return Written(msgspec.json.encode(snapshot), committed)
