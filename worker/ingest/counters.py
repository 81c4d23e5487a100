"""Counters of a gateway: plain numbers, cheap enough for every frame."""

from collections import Counter

from worker.telemetry.counters import Histogram

REFUSED_STATUSES = ("400", "401", "403", "409", "503")
END_REASONS = ("ended", "closed", "lost", "drained", "over", "silent", "internal")


class IngestCounters:
    """Counters of one gateway process since it started."""

    __slots__ = (
        "append_latency",
        "bytes",
        "calls_ended",
        "calls_open",
        "calls_total",
        "controls_dropped",
        "dropped_ms",
        "entries",
        "frames",
        "frames_repeated",
        "frames_unused",
        "holes",
        "internal_errors",
        "refused",
    )

    def __init__(self) -> None:
        self.calls_open: Counter[str] = Counter()
        """Calls that have not ended yet, by protocol."""
        self.calls_total: Counter[str] = Counter()
        """Calls that were opened, by protocol."""
        self.calls_ended: Counter[str] = Counter(dict.fromkeys(END_REASONS, 0))
        """Calls that ended: by the peer's message (`ended`), a clean close (`closed`), the grace
        (`lost`) or a drain (`drained`), because the sessions were `over`, without any audio
        (`silent`), or by an `internal` error."""
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSED_STATUSES, 0))
        """Calls that were refused, by HTTP status."""
        self.frames = 0
        """Audio frames received."""
        self.frames_repeated = 0
        """Numbered frames that were dropped: repeats, and those that came too late."""
        self.frames_unused = 0
        """Audio frames of sessions that take no more audio."""
        self.holes = 0
        """Chunks that are missing by the timestamps of the peer."""
        self.entries = 0
        """Entries appended to audio streams."""
        self.bytes = 0
        """Bytes of audio appended."""
        self.dropped_ms = 0.0
        """Milliseconds of audio that were dropped because Redis was away for too long."""
        self.controls_dropped = 0
        """Marks, forced ends and configs that were dropped for the same reason."""
        self.internal_errors = 0
        """Internal errors that ended a call or a request."""
        self.append_latency = Histogram()
        """Time of an append, including its retries."""
