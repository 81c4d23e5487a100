"""Holdback: how often the growing text of a turn is published.

Every update carries the whole text of its turn, so a turn of ten minutes with an update for every
word would cost megabytes. The longer the text is, the longer is the interval to the next update: a
session writes a steady number of bytes a second, and a reader sees short turns word by word.
"""

MAX_INTERVAL_S = 5.0
"""Longest interval between two updates, however long the text is."""

UNIT_CHARS = 1_000
"""Length of text that the interval is set for."""


class UpdateThrottle:
    """Decides for one session; times are seconds on one steady clock."""

    def __init__(self, interval_ms: float) -> None:
        """`interval_ms` is the interval after a text of 1,000 characters; 0 is none."""
        self._s_per_char = interval_ms / 1000 / UNIT_CHARS
        self._next_at = float("-inf")

    def published(self, text: str, now: float) -> None:
        """Note that a text was published, in an event of any kind."""
        self._next_at = now + min(MAX_INTERVAL_S, len(text) * self._s_per_char)

    def reset(self) -> None:
        """Let the next update pass: it is the first one of a turn."""
        self._next_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Say whether an update may be published."""
        return now >= self._next_at
