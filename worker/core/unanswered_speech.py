"""Speech that a provider does not answer, although it takes the audio.

A provider that sends nothing in silence may be stuck, between turns and inside one. Only the sound
shows it: speech alternates between sound and silence, relative to the noise of the line, and music
or a hum hardly does.

Between turns, the worker looks at the audio between two answered pings. If it is speech each time
for 10 s, and no message comes, the socket is replaced, and that audio is sent again. A noise may be
taken for speech. So a session replaces one socket, and no other before the next event of a turn.

Inside a turn, a provider updates the text four times a second while there is speech. There, a
session that can continue at another provider leaves earlier: `UnansweredTurn`.
"""

from math import ceil

WINDOW_MS = 2_500
"""Audio that is looked at each time: what was sent since the last time."""

MAX_WINDOWS = 4
"""Number of windows in a row with speech: 10 s."""

MIN_SOUND = 0.35
MIN_SILENCE = 0.1
MIN_CHANGES = 3
"""Of speech: minimum share of loud frames and of silent ones, and of changes to silence."""


def is_speech(silent: bytes) -> bool:
    """Return whether frames, 1 for a silent one and 0 for a loud one, may be speech."""
    quiet, frames = silent.count(1), len(silent)
    return (
        frames - quiet >= MIN_SOUND * frames
        and quiet >= MIN_SILENCE * frames
        and silent.count(b"\x00\x01") >= MIN_CHANGES
    )


class UnansweredSpeech:
    """Counts the windows of speech without a message; for all sockets of a session."""

    __slots__ = ("_replaced", "_windows")

    def __init__(self) -> None:
        self._windows = 0
        self._replaced = False

    def restart(self) -> None:
        """Start on a new socket."""
        self._windows = 0

    def on_turn_event(self) -> None:
        """Record an event of a turn."""
        self._windows = 0
        self._replaced = False

    @property
    def is_fault(self) -> bool:
        """Whether the socket has to be replaced; True once."""
        fault = self._windows >= MAX_WINDOWS
        self._replaced = self._replaced or fault
        return fault

    def observe(self, silent: bytes) -> bool:
        """Record the audio between two answered pings; return whether to keep it uncommitted."""
        if self._replaced or not is_speech(silent):
            self._windows = 0
            return False
        self._windows += 1
        return True


MAX_LAG_MS = 3_000.0
"""Maximum lag of a provider that works: single messages may come so late."""

REFERENCE_MS = 500.0
"""Audio without a message after which the loudness of the voice is measured, by the speech before
it. Speech with an update every 0.25 s never reaches it."""


class UnansweredTurn:
    """Whether a provider is stuck inside a turn, for all sockets of a session.

    It is stuck if it was sent speech for `MAX_LAG_MS` and the failover time, and sent nothing. Only
    windows of speech count that are as loud as what it answered: a pause, filler, or voices behind
    a speaker who has stopped are no evidence. A window also takes its time: while a backlog is sent
    faster than real time, the messages about it come later.

    A noise may still be taken for speech. So if a session has left a provider inside a turn, it
    gives the next one twice as long, until the turn is over.
    """

    __slots__ = (
        "_count",
        "_looked_at",
        "_looked_ms",
        "_message_ms",
        "_needed",
        "_patience",
        "_quiet",
        "_turn",
        "_window_ms",
    )

    def __init__(self, failover_s: float) -> None:
        """`failover_s` is how long a provider may fail before a session leaves it."""
        patience_ms = MAX_LAG_MS + failover_s * 1_000
        self._patience = ceil(patience_ms / WINDOW_MS)  # number of windows
        self._window_ms = patience_ms / self._patience
        self._needed = self._patience
        self._turn = -1  # the turn in which a provider was left
        self._message_ms = -1.0
        self._count = 0
        self._quiet: int | None = None  # level of the silence between the answered words
        self._looked_ms = self._looked_at = 0.0

    def restart(self) -> None:
        """Start on a new socket."""
        self._message_ms = -1.0
        self._count = 0

    def window_due(self, now: float, message_ms: float, sent_ms: float) -> int:
        """Return how much of the last audio has to be observed now, in milliseconds; mostly 0.

        The last message arrived after `message_ms` of the socket's audio, and `sent_ms` are sent.
        """
        if message_ms != self._message_ms:
            self._message_ms = self._looked_ms = message_ms
            self._looked_at = now
            self._count, self._quiet = 0, None
        unseen_ms = sent_ms - self._looked_ms
        if self._quiet is None:
            return WINDOW_MS if unseen_ms >= REFERENCE_MS else 0
        elapsed_ms = (now - self._looked_at) * 1_000
        if min(unseen_ms, elapsed_ms) < self._window_ms:
            return 0
        self._looked_ms, self._looked_at = sent_ms, now
        return int(self._window_ms)

    @property
    def least_quiet(self) -> int:
        """Level up to which a frame is no speech: what the provider answered was louder."""
        return self._quiet or 0

    def observe(self, silent: bytes, quiet: int) -> None:
        """Record the audio that was due: its frames, and the level up to which they are silent."""
        if self._quiet is None:
            self._quiet = quiet
        else:
            self._count += is_speech(silent)

    def is_stuck(self, turn: int) -> bool:
        """Return whether the provider is stuck inside the turn with this number."""
        if turn != self._turn:
            self._needed = self._patience
        return self._count >= self._needed

    def left(self, turn: int) -> None:
        """Record that the session leaves the provider inside this turn."""
        self._turn = turn
        self._needed *= 2

    @property
    def unanswered_s(self) -> float:
        """Seconds of speech without a message."""
        return self._count * self._window_ms / 1_000
