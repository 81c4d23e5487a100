"""The phases of a session: what each input means in each phase, as one table.

A session is parked until there is audio. It connects, is live on a socket, and flushes the socket
after the last audio. Then it is parked again, or over. After a lost socket it connects again.
`docs/architecture.md` has the table as a diagram.

The session performs the actions. Where an input has one action only, it does not look it up.
"""

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """State of a session's connection."""

    PARKED = "parked"
    CONNECTING = "connecting"
    LIVE = "live"
    FLUSHING = "flushing"
    OVER = "over"

    __hash__ = str.__hash__  # in C; that of `Enum` is slower than the whole lookup in the table


class Input(StrEnum):
    """What happens to a session."""

    ENTRIES = "the reader read audio entries"
    TICK = "the ticker checks the deadlines"
    WORK = "audio was read"
    END = "the producer ended the session, and no audio is left"
    IDLE = "the producer has appended nothing for the idle timeout"
    CONNECTED = "a socket is open"
    LAST_SENT = "the last audio for this socket was sent"
    FLUSHED = "the provider answered the flush"
    FLUSHED_END = "the provider answered the flush of the session's last audio"
    FLUSHED_EARLY = "the provider answered a flush; the audio that follows is late"
    LOST = "the socket was lost"
    CLOSED_IDLE = "the provider closed an idle socket"
    RETRY = "the delay before the next connect is over"
    FATAL = "an error occurred that no retry can fix"
    STOP = "the session's task stops: the session is over, released or taken over"

    __hash__ = str.__hash__


class Action(StrEnum):
    """What the session does."""

    HOLD = "buffer the audio until a socket is open"
    SEND = "send the audio"
    SKIP = "ignore the entries; they are read again later, if at all"
    CHECK_IDLE = "check whether the producer is idle"
    CHECK_OUTAGE = "check whether to publish that there is no socket"
    CHECK_SOCKET = "check the socket, the open turn and the flush"
    CONNECT = "open a socket"
    ATTACH = "send from the committed position on"
    FLUSH = "send `close`, so that the provider transcribes the rest"
    PARK = "release the permit, then wait for audio"
    WAIT = "wait for audio"
    RECONNECT = "go back to the committed position, wait, then retry"
    END = "publish the session's end"
    FAIL = "publish the error and the session's end"
    NOTHING = "do nothing"


TABLE: Mapping[tuple[Phase, Input], tuple[Action, Phase]] = {
    (Phase.PARKED, Input.ENTRIES): (Action.HOLD, Phase.PARKED),
    (Phase.PARKED, Input.TICK): (Action.CHECK_IDLE, Phase.PARKED),
    (Phase.PARKED, Input.WORK): (Action.CONNECT, Phase.CONNECTING),
    (Phase.PARKED, Input.END): (Action.END, Phase.OVER),
    (Phase.PARKED, Input.IDLE): (Action.END, Phase.OVER),
    (Phase.PARKED, Input.FATAL): (Action.FAIL, Phase.OVER),
    (Phase.CONNECTING, Input.ENTRIES): (Action.HOLD, Phase.CONNECTING),
    (Phase.CONNECTING, Input.TICK): (Action.CHECK_OUTAGE, Phase.CONNECTING),
    (Phase.CONNECTING, Input.CONNECTED): (Action.ATTACH, Phase.LIVE),
    (Phase.CONNECTING, Input.RETRY): (Action.WAIT, Phase.PARKED),
    (Phase.CONNECTING, Input.FATAL): (Action.FAIL, Phase.OVER),
    (Phase.LIVE, Input.ENTRIES): (Action.SEND, Phase.LIVE),
    (Phase.LIVE, Input.TICK): (Action.CHECK_SOCKET, Phase.LIVE),
    (Phase.LIVE, Input.LAST_SENT): (Action.FLUSH, Phase.FLUSHING),
    (Phase.LIVE, Input.LOST): (Action.RECONNECT, Phase.CONNECTING),
    (Phase.LIVE, Input.CLOSED_IDLE): (Action.PARK, Phase.PARKED),
    (Phase.LIVE, Input.FATAL): (Action.FAIL, Phase.OVER),
    (Phase.FLUSHING, Input.ENTRIES): (Action.SKIP, Phase.FLUSHING),
    (Phase.FLUSHING, Input.TICK): (Action.CHECK_SOCKET, Phase.FLUSHING),
    (Phase.FLUSHING, Input.FLUSHED): (Action.PARK, Phase.PARKED),
    (Phase.FLUSHING, Input.FLUSHED_END): (Action.END, Phase.OVER),
    (Phase.FLUSHING, Input.FLUSHED_EARLY): (Action.WAIT, Phase.PARKED),
    (Phase.FLUSHING, Input.LOST): (Action.RECONNECT, Phase.CONNECTING),
    (Phase.FLUSHING, Input.CLOSED_IDLE): (Action.PARK, Phase.PARKED),
    (Phase.FLUSHING, Input.FATAL): (Action.FAIL, Phase.OVER),
    (Phase.OVER, Input.ENTRIES): (Action.SKIP, Phase.OVER),
    (Phase.OVER, Input.TICK): (Action.NOTHING, Phase.OVER),
    **{(phase, Input.STOP): (Action.NOTHING, Phase.OVER) for phase in Phase},
}
"""The action and the next phase. No other pair can occur."""


class Lifecycle:
    """The phase of one session."""

    def __init__(self) -> None:
        self.phase = Phase.PARKED

    def process(self, input_: Input) -> Action:
        """Enter the next phase and return what to do.

        Raises `RuntimeError` if the input cannot occur in this phase.
        """
        row = TABLE.get((self.phase, input_))
        if row is None:
            raise RuntimeError(f"{input_.name} cannot occur in the phase {self.phase.name}")
        action, self.phase = row
        return action

    @property
    def flushing(self) -> bool:
        """Whether `close` was sent on the current socket."""
        return self.phase is Phase.FLUSHING
