"""What a worker counts: plain integers, cheap enough for every chunk."""

from bisect import bisect_left

BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the histogram buckets, in seconds."""


class Histogram:
    """Durations by bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        """Durations counted."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Return an upper bound of the `q`-quantile, in seconds; 0 without any duration."""
        rank = q * self.count
        seen = 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= rank and seen:
                return bound
        return 0.0


class Stats:
    """Counters of one worker since it started."""

    def __init__(self) -> None:
        self.chunks = 0
        """Entries with audio taken in, replays included."""
        self.bytes = 0
        """Bytes of audio sent to the service, replays and filler included."""
        self.events = 0
        self.connects = 0
        self.connect_failures = 0
        self.sockets_lost = 0
        self.takeovers = 0
        self.fenced = 0
        self.refused_entries = 0
        self.provider_violations = 0
        self.provider_unknown = 0
        self.chunk_lag = Histogram()
        """From an entry's id (Redis clock) to its audio being sent, live audio only."""
        self.commit_latency = Histogram()
        """From an event's making to its commit."""
