"""What a worker counts: plain numbers, cheap enough for every chunk.

They are made into metrics by `worker.telemetry.metrics`, when somebody asks for them.
"""

from bisect import bisect_left
from collections import Counter
from typing import get_args

from schemas.turns import Event, GapReason
from schemas.validation import REASONS

BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the histogram buckets, in seconds."""

TURN_BOUNDS_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""The same for the end of a turn, which waits for a silence long enough to be one."""

COMPONENTS = (
    *(
        "acquire",
        "backlog",
        "claim",
        "clock",
        "committer",
        "dead_letters",
        "drain_requests",
        "fitness",
    ),
    *("gate", "handover", "heartbeat", "lanes", "liveness", "metrics", "reader", "recovery"),
    *("session", "sweeper", "ticker", "worker_record"),
)
"""Components of a worker, as labels of its internal errors."""

_EVENT_TYPES = [str(event.__struct_config__.tag) for event in get_args(Event)]
_REFUSALS = (*REASONS, "duplicate", "ended", "unusable", "internal")


class Histogram:
    """Durations by bucket."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        """Durations counted."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Return an upper bound of the `q`-quantile, in seconds; 0 without any duration."""
        rank = q * self.count
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= rank and seen:
                return bound
        return 0.0


class Counters:
    """Counters of one worker since it started.

    What is counted by kind begins with the kinds there are: a rate of something that never
    happened is 0, and not unknown.
    """

    def __init__(self) -> None:
        self.chunks = 0
        """Entries with audio taken in, replays included."""
        self.chunks_repeated = 0
        """Entries whose audio was dropped, for their producer had sent their `seq` before."""
        self.bytes = 0
        """Bytes of audio sent to the service, replays and filler included."""
        self.replayed_s = 0.0
        """Audio that was sent and has to be sent again, to another socket."""
        self.gaps: Counter[str] = Counter(dict.fromkeys(get_args(GapReason), 0))
        """`audio.gap` events, by reason."""
        self.missing_ms: Counter[str] = Counter(dict.fromkeys(get_args(GapReason), 0))
        """Milliseconds of audio that they announced."""
        self.events: Counter[str] = Counter(dict.fromkeys(_EVENT_TYPES, 0))
        """Events made, by type."""
        self.commits: Counter[str] = Counter(ok=0, fenced=0, missing=0, gap=0, error=0)
        """Answers of `commit.lua`; `error` is anything it does not document."""
        self.connects: Counter[str] = Counter(ok=0, busy=0, credentials=0, permanent=0, transient=0)
        """Connects tried, by outcome: `ok` or the class of the fault."""
        self.sockets_lost: Counter[str] = Counter(idle=0, permanent=0, transient=0)
        """Sockets closed without our asking, by the class of the fault."""
        self.takeovers: Counter[str] = Counter(killed=0, silent=0, released=0)
        """Sessions taken over, by what became of their owner."""
        self.rejected_entries: Counter[str] = Counter(dict.fromkeys(_REFUSALS, 0))
        """Entries put on the dead stream, by reason."""
        self.internal_errors: Counter[str] = Counter(dict.fromkeys(COMPONENTS, 0))
        """Faults of ours that the worker survived, by the part they struck."""
        self.provider_unknown = 0
        """Messages of the service that this version does not know."""
        self.provider_unreadable = 0
        """Messages of the service that cannot be read, or in part only."""
        self.chunk_lag = Histogram()
        """From an entry's id (Redis clock) to its audio being sent, live audio only."""
        self.turn_latency = Histogram(TURN_BOUNDS_S)
        """From a turn's last sound being sent to its `turn.end` being committed."""
        self.commit_latency = Histogram()
        """From an event's making to its commit."""
        self.connect_s = Histogram()
        """From dialling to `connected`."""
        self.gate_wait = Histogram(TURN_BOUNDS_S)
        """Waits for a permit to open a socket."""
        self.loop_delay = Histogram()
        """How late the event loop woke the worker's clock."""
