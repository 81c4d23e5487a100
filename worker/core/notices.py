"""Notices: how often errors in the input of one session are published.

The same error may occur with every chunk, 50 times a second. It is published at its first
occurrence, then with a count whenever the count has doubled, and at the end of the session. Counts
that are not published yet are kept in the checkpoint.
"""

from collections.abc import Iterator

import msgspec

from worker.core import stream_ids

MAX_KINDS = 32
"""Maximum number of kinds counted separately per session; others are counted by their code."""

OTHERS = "other errors"

GAP_INTERVAL_S = 5.0
"""Minimum interval between two gaps of the producer; sooner ones are published as a sum."""

MAX_REPEATED_MS = 5_000.0
"""Maximum audio in a row that is dropped as repeats before an error is published."""


class Tally(msgspec.Struct):
    """Counts of one kind of error."""

    code: str
    subject: str
    seen: int = 0
    published: int = 0
    """Value of `seen` when it was last published."""


class RepeatRun(msgspec.Struct, omit_defaults=True):
    """Entries in a row that were dropped as unproven repeats."""

    first: str = stream_ids.START
    entries: int = 0
    ms: float = 0.0
    published: int = 0
    """Value of `entries` when the run was last published."""
    due_ms: float = MAX_REPEATED_MS
    """Length at which the run is published next."""


class NoticesState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State kept in the checkpoint."""

    tallies: tuple[Tally, ...] = ()
    gap_ms: float = 0.0
    """Missing audio that is not published yet, in milliseconds."""
    repeats: RepeatRun | None = None
    untimed: bool = False
    """Whether the ids of the session's audio entries are not times."""


class Notices:
    """Counts errors for one session. The caller must count each entry once."""

    __slots__ = (
        "_gap_at",
        "_gap_ms",
        "_repeats",
        "_tallies",
        "untimed",
    )

    def __init__(self, state: NoticesState) -> None:
        self._tallies = {(each.code, each.subject): each for each in state.tallies}
        self._gap_ms = state.gap_ms
        self._gap_at = float("-inf")
        self._repeats = state.repeats
        self.untimed = state.untimed
        """Whether the ids of the session's audio entries are not times."""

    @property
    def state(self) -> NoticesState:
        """State for the checkpoint."""
        return NoticesState(
            tuple(self._tallies.values()), self._gap_ms, self._repeats, self.untimed
        )

    def count(self, code: str, subject: str) -> int:
        """Count one error; return the count of its kind to publish now, or 0."""
        if (code, subject) not in self._tallies and len(self._tallies) >= MAX_KINDS:
            subject = OTHERS
        tally = self._tallies.setdefault((code, subject), Tally(code, subject))
        tally.seen += 1
        if tally.seen < 2 * tally.published:
            return 0
        tally.published = tally.seen
        return tally.seen

    def unpublished(self) -> Iterator[Tally]:
        """Yield the kinds with unpublished errors, and mark them as published."""
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
        """Return the unpublished milliseconds of missing audio, and mark them as published."""
        gap_ms, self._gap_ms = int(self._gap_ms), 0.0
        return gap_ms

    def repeated(self, entry_id: str, ms: float) -> RepeatRun | None:
        """Count an unproven repeat; return the run if it is to be published now.

        A producer that resends its buffer after a reconnect does so at once. If a run takes as long
        as its audio, the counter went back.
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
        """End the run of repeats; return it if it is to be published."""
        run, self._repeats = self._repeats, None
        if run is None or run.entries == run.published:
            return None
        return run if run.published or (session_ends and run.ms >= MAX_REPEATED_MS) else None
