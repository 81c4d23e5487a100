"""Predicts when a stream's next chunk arrives, to avoid polling much earlier.

A thousand streams with a chunk every 100 ms, polled every 15 ms, return nothing six times out of
seven. Live audio is regular: a chunk of 100 ms is followed by the next one in 100 ms. A stream that
becomes irregular is polled often until it is regular again.
"""

from typing import Final, Generic, Protocol, TypeVar

MAX_INTERVAL_S = 0.1
"""Maximum interval between polls of a stream, however long its chunks are."""

IDLE_INTERVAL_S = 0.05
"""Interval between polls of a stream without entries for a second or more."""

SMOOTHING = 1 / 8
"""Share of a chunk's lateness that shifts the schedule: a single late chunk proves little."""


SLOTS_PER_S: Final = 200
"""Slots of a `PollQueue` for each second: a third of the interval between two polls."""


class PollSchedule:
    """The poll schedule of one stream; times are seconds on one monotonic clock."""

    __slots__ = ("_beat_at", "_lasts_s", "last_polled_at", "next_at", "slot")

    def __init__(self, now: float) -> None:
        self._beat_at = now  # when the last chunk arrived, or was due
        self._lasts_s = 0.0
        self.next_at = now
        """Time of the next poll."""
        self.last_polled_at = float("-inf")
        """Start time of the last poll whose result is known."""
        self.slot = 0
        """Slot of the `PollQueue` that the stream is in, or was in before it was taken."""

    def on_entries(self, now: float, arrived_at: float, lasts_s: float) -> None:
        """Record a chunk of `lasts_s` seconds that a poll just returned."""
        expected_at = self._beat_at + self._lasts_s
        if expected_at < arrived_at < expected_at + lasts_s:
            self._beat_at = expected_at + SMOOTHING * (arrived_at - expected_at)
        else:
            self._beat_at = arrived_at
        self._lasts_s = lasts_s
        self.next_at = min(self._beat_at + lasts_s, now + MAX_INTERVAL_S)

    def on_empty(self, now: float) -> None:
        """Record that a poll just returned nothing."""
        late_s = now - self._beat_at - self._lasts_s
        if late_s < 0:
            self.next_at = now + min(-late_s, MAX_INTERVAL_S)
        else:
            self.next_at = now + min(late_s, 1.0) * IDLE_INTERVAL_S

    def poll_now(self) -> None:
        """Poll as soon as possible: there are more entries, or there may be."""
        self.next_at = 0.0


class Polled(Protocol):
    """A stream that is polled."""

    poll_schedule: PollSchedule
    """Schedule of the stream's polls."""


P = TypeVar("P", bound=Polled)


class PollQueue(Generic[P]):
    """Streams by the time of their next poll: a poll looks only at those that are due.

    It is a timing wheel without a fixed length: a dictionary of slots of 5 ms, of which at most
    some 20 exist. Only the streams of the present slot are compared with the time.
    """

    def __init__(self) -> None:
        self._slots: dict[int, dict[P, None]] = {}

    def put(self, stream: P) -> None:
        """Queue a stream for `next_at` of its schedule. A stream has one place in the queue."""
        self.remove(stream)
        schedule = stream.poll_schedule
        schedule.slot = number = int(schedule.next_at * SLOTS_PER_S)
        slot = self._slots.get(number)
        if slot is None:
            self._slots[number] = {stream: None}
        else:
            slot[stream] = None

    def remove(self, stream: P) -> None:
        """Forget a stream."""
        number = stream.poll_schedule.slot
        slot = self._slots.get(number)
        if slot is not None:
            slot.pop(stream, None)
            if not slot:
                del self._slots[number]

    def take_due(self, now: float) -> list[P]:
        """Remove and return the streams whose next poll is due."""
        slots = self._slots
        present = int(now * SLOTS_PER_S)
        due: list[P] = []
        for number in [number for number in slots if number < present]:
            due += slots.pop(number)
        slot = slots.get(present)
        if slot:
            reached = [stream for stream in slot if stream.poll_schedule.next_at <= now]
            for stream in reached:
                del slot[stream]
            due += reached
        return due


class ClockOffset:
    """Converts timestamps of a server's clock to the local clock.

    The timestamp with the shortest delay gives the offset of the clocks. Clocks may be set or
    drift, so only timestamps of the last one or two windows count.
    """

    WINDOW_S = 10.0

    def __init__(self) -> None:
        self._apart_s = self._before_s = float("inf")
        self._since = 0.0

    def to_local(self, now: float, stamp_s: float) -> float:
        """Return the local time of the server's timestamp `stamp_s`, received at `now`."""
        if now - self._since > self.WINDOW_S:
            self._before_s = self._apart_s
            self._apart_s = float("inf")
            self._since = now
        self._apart_s = min(self._apart_s, now - stamp_s)
        return stamp_s + min(self._apart_s, self._before_s)
