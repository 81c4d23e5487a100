"""Speech that a provider does not answer, although it takes the audio.

A provider that sends nothing in silence may be stuck between turns. Only the sound shows it: speech
alternates between sound and silence, relative to the noise of the line, and music or a hum hardly
does. The worker looks at the audio between two answered pings. If it is speech each time for 10 s,
and no message comes, the socket is replaced, and that audio is sent again.

A noise may be taken for speech. So a session replaces one socket, and no other before the next
event of a turn.
"""

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
