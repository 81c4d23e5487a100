"""Update throttle: limits how often the growing text of a turn is published.

Every update contains the whole text of its turn, so ten minutes of updates for every word would
cost megabytes. The interval to the next update grows with the text. A session thus writes a steady
number of bytes a second, and consumers receive short turns word by word.
"""

MAX_INTERVAL_S = 5.0
"""Maximum interval between two updates, however long the text is."""

UNIT_CHARS = 1_000
"""Text length for which the interval is configured, in characters."""


class UpdateThrottle:
    """Throttles the updates of one session; times are seconds on one monotonic clock."""

    def __init__(self, interval_ms: float) -> None:
        """`interval_ms` is the interval after a text of 1,000 characters; 0 is none."""
        self._s_per_char = interval_ms / 1000 / UNIT_CHARS
        self._next_at = float("-inf")

    def published(self, text: str, now: float) -> None:
        """Record that a text was published, in an event of any kind."""
        self._next_at = now + min(MAX_INTERVAL_S, len(text) * self._s_per_char)

    def reset(self) -> None:
        """Allow the next update at once, because it is the first of a turn."""
        self._next_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Return whether an update may be published."""
        return now >= self._next_at
