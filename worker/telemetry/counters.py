"""Counters of a worker: plain numbers, cheap enough for every chunk.

`worker.telemetry.metrics` converts them to metrics on request.
"""

from bisect import bisect_left
from collections import Counter
from typing import get_args

from schemas.turns import Event, GapReason
from schemas.validation import REASONS
from worker.settings import PROVIDERS

BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the histogram buckets, in seconds."""

TURN_BOUNDS_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Upper bounds for turn latency, which includes the silence that ends a turn."""

COMPONENTS = (
    *(
        "acquire",
        "backlog",
        "breakers",
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
    """Counts of durations by bucket."""

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
        """Number of durations."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Return an upper bound of the `q`-quantile, in seconds; 0 without durations."""
        rank = q * self.count
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= rank and seen:
                return bound
        return 0.0


class Counters:
    """Counters of one worker since it started.

    Counters by kind start with all kinds at 0, so that the rate of a kind that never occurred is 0
    and not unknown.
    """

    def __init__(self) -> None:
        self.chunks = 0
        """Audio entries read, including replays."""
        self.chunks_repeated = 0
        """Audio entries dropped because of a duplicate `seq`."""
        self.bytes = 0
        """Bytes of audio sent to the provider, including replays and filler."""
        self.replayed_s = 0.0
        """Seconds of audio that have to be sent again, on another socket."""
        self.gaps: Counter[str] = Counter(dict.fromkeys(get_args(GapReason), 0))
        """`audio.gap` events, by reason."""
        self.missing_ms: Counter[str] = Counter(dict.fromkeys(get_args(GapReason), 0))
        """Milliseconds of audio missing in gaps, by reason."""
        self.events: Counter[str] = Counter(dict.fromkeys(_EVENT_TYPES, 0))
        """Events created, by type."""
        self.commits: Counter[str] = Counter(ok=0, fenced=0, missing=0, gap=0, error=0)
        """Verdicts of `commit.lua`; `error` is an undocumented one."""
        self.connects: Counter[str] = Counter(ok=0, busy=0, credentials=0, permanent=0, transient=0)
        """Connects, by outcome: `ok` or the error class."""
        self.sockets_lost: Counter[str] = Counter(idle=0, permanent=0, transient=0)
        """Sockets that the worker did not close itself, by error class."""
        self.failovers: Counter[str] = Counter(dict.fromkeys(PROVIDERS, 0))
        """Sessions that left a provider because it failed, by its name."""
        self.takeovers: Counter[str] = Counter(killed=0, silent=0, released=0)
        """Sessions taken over, by cause."""
        self.rejected_entries: Counter[str] = Counter(dict.fromkeys(_REFUSALS, 0))
        """Dead letters, by reason."""
        self.internal_errors: Counter[str] = Counter(dict.fromkeys(COMPONENTS, 0))
        """Internal errors that the worker survived, by component."""
        self.provider_unknown = 0
        """Provider messages of a type unknown to this version."""
        self.provider_unreadable = 0
        """Provider messages that are not fully readable."""
        self.chunk_lag = Histogram()
        """Time from an entry's id (Redis clock) to sending its audio, live audio only."""
        self.turn_latency = Histogram(TURN_BOUNDS_S)
        """Time from sending a turn's last sound to committing its `turn.end`."""
        self.commit_latency = Histogram()
        """Time from an event's creation to its commit."""
        self.connect_s = Histogram()
        """Time from the start of a connect to `connected`."""
        self.gate_wait = Histogram(TURN_BOUNDS_S)
        """Time waited for a permit to open a socket."""
        self.loop_delay = Histogram()
        """Delay of the event loop's ticker wake-ups."""
