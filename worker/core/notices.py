"""Notices: how often what is wrong with the input of one session is published.

The same fault may come with every chunk, 50 times a second. It is published when it comes the
first time, then with a count each time that the count has doubled, and at the end of the session.
What was counted and not published yet is saved with the session, and so survives a worker.
"""

from collections.abc import Iterator

import msgspec

from worker.core import stream_ids

MAX_KINDS = 32
"""Kinds that are counted apart for one session; further ones are counted by their code."""

OTHERS = "other faults"

GAP_INTERVAL_S = 5.0
"""Time between two gaps of the producer's; those that come sooner are published as a sum."""

MAX_REPEATED_MS = 5_000.0
"""Audio in a row that is dropped as repeats before consumers are informed."""


class Tally(msgspec.Struct):
    """One kind of fault."""

    code: str
    subject: str
    seen: int = 0
    published: int = 0
    """How many there were when it was published last."""


class RepeatRun(msgspec.Struct, omit_defaults=True):
    """Entries in a row that were dropped as repeats and are not known to be some."""

    first: str = stream_ids.START
    entries: int = 0
    ms: float = 0.0
    published: int = 0
    """Entries of the run when it was published last."""
    due_ms: float = MAX_REPEATED_MS
    """Length at which the run is published next."""


class NoticesState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What survives the worker."""

    tallies: tuple[Tally, ...] = ()
    gap_ms: float = 0.0
    """Missing audio that is not published yet."""
    repeats: RepeatRun | None = None
    untimed: bool = False
    """The ids of the session's audio entries are not times."""


class Notices:
    """Counts for one session. Whoever counts an entry makes sure that it counts it once."""

    def __init__(self, state: NoticesState) -> None:
        self._tallies = {(each.code, each.subject): each for each in state.tallies}
        self._gap_ms = state.gap_ms
        self._gap_at = float("-inf")
        self._repeats = state.repeats
        self.untimed = state.untimed
        """The ids of the session's audio entries are not times."""

    @property
    def state(self) -> NoticesState:
        """Return what a new owner needs."""
        return NoticesState(
            tuple(self._tallies.values()), self._gap_ms, self._repeats, self.untimed
        )

    def count(self, code: str, subject: str) -> int:
        """Count one fault; return how many of its kind there are if that is to be published."""
        if (code, subject) not in self._tallies and len(self._tallies) >= MAX_KINDS:
            subject = OTHERS
        tally = self._tallies.setdefault((code, subject), Tally(code, subject))
        tally.seen += 1
        if tally.seen < 2 * tally.published:
            return 0
        tally.published = tally.seen
        return tally.seen

    def unpublished(self) -> Iterator[Tally]:
        """Yield the kinds of which some faults are not published; they are then."""
        for tally in self._tallies.values():
            if tally.seen > tally.published:
                yield tally
                tally.published = tally.seen

    def missed(self, ms: float, now: float) -> int:
        """Add missing audio; return the milliseconds to publish now."""
        self._gap_ms += ms
        return self.gap_due(now)

    def gap_due(self, now: float) -> int:
        """Return the milliseconds of missing audio to publish now, 0 if none."""
        if self._gap_ms < 1 or now - self._gap_at < GAP_INTERVAL_S:
            return 0
        gap_ms, self._gap_ms, self._gap_at = int(self._gap_ms), 0.0, now
        return gap_ms

    def gap_rest(self) -> int:
        """Return the milliseconds of missing audio that are not published; they are then."""
        gap_ms, self._gap_ms = int(self._gap_ms), 0.0
        return gap_ms

    def repeated(self, entry_id: str, ms: float) -> RepeatRun | None:
        """Count a repeat that is not proven; return the run if it is to be published now.

        A producer that resends its buffer after a reconnect does it at once. A run that takes as
        long as its audio is one of a counter that went back.
        """
        run = self._repeats
        if run is None:
            run = self._repeats = RepeatRun(entry_id)
        run.entries += 1
        run.ms += ms
        lasted_ms = stream_ids.milliseconds(entry_id) - stream_ids.milliseconds(run.first)
        if run.ms < run.due_ms or (lasted_ms < MAX_REPEATED_MS / 2 and not self.untimed):
            return None
        run.due_ms = 2 * run.ms
        run.published = run.entries
        return run

    @property
    def repeating(self) -> bool:
        """Whether the last entries were dropped as repeats."""
        return self._repeats is not None

    def repeats_end(self, *, session_ends: bool) -> RepeatRun | None:
        """End the run of repeats; return it if that is to be published."""
        run, self._repeats = self._repeats, None
        if run is None or run.entries == run.published:
            return None
        return run if run.published or (session_ends and run.ms >= MAX_REPEATED_MS) else None
