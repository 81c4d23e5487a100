"""The plan of a simulated fleet: plain data, printed and read as JSON. `draw.py` draws it.

The plan holds every choice of a run except the order of events, which the world draws from `seed`.
So a plan without a session or a fault is a plan too, and a failure can be made smaller.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from schemas.audio import Encoding, TurnConfig
from tests.chaos.script import ScriptedSession

MAX_WORKERS: Final = 3
MAX_SESSIONS: Final = 20
MAX_FAULTS: Final = 40

SHORT_LAG_S: Final = 8.0
"""A `TURNBUS_MAX_LAG_S` that outages exceed. The clocks then stay right: lateness is Redis's time,
and a gap's time is the worker's."""

FaultKind = Literal[
    "crash",
    "vanish",
    "pause",
    "stop",
    "stop-twice",
    "skew",
    "redis-cut",
    "partition",
    "lost-reply",
    "redis-restart",
    "redis-failover",
    "redis-full",
    "redis-slow",
    "redis-late",
    "redis-jump",
    "scripts-flushed",
    "group-destroyed",
    "entry-deleted",
    "orphaned",
    "slot-moved",
    "provider-cut",
    "provider-cut-at-byte",
    "provider-stall",
    "provider-away",
    "provider-slow",
    "provider-fault",
]

BadEntryKind = Literal[
    "unknown-encoding",
    "missing-rate",
    "bad-rate",
    "bad-json",
    "too-large",
    "unservable",
    "missing-session",
    "bad-lane",
    "known-id",
    "repeated",
]
"""What is wrong with a session entry; `bad_entries.py` has the fields."""

BadAudioKind = Literal["empty", "too-large", "bad-config", "bad-mark", "bad-seq"]
"""What is wrong with entries of a session's audio."""

ALWAYS: Final = 1_000
"""Number of internal errors of a session that cannot run."""

TRIGGERS: Final = (
    *("commit", "commit", "commit", "claim", "heartbeat", "take_over", "release"),
    *("request_permits", "release_permit", "complete", "announce", "announce"),
)
"""Scripts at whose call a fault may strike, some drawn more often; `announce` is a producer's new
session, whose entry a worker has not received yet."""

STATES_AWAITED: Final = (
    *("parked", "connecting", "flushing", "none/none", "speaking/none"),
    *("speaking/eager", "eager/none", "eager/speaking", "eager/eager"),
)
"""States for which a fault may wait: those that faults at random times rarely meet."""

LOST_IN: Final = {
    "speaking/none": "speaking/speaking",
    "speaking/eager": "speaking/speaking",
    "eager/none": "eager/eager",
    "eager/speaking": "eager/eager",
}
"""States that follow a lost socket, and the state in which it has to be lost."""

PROVIDER_FAULTS: Final = (
    "half-open@mid-turn,count=1",
    "half-open@handshake,count=1",
    "stall@mid-turn,count=1",
    "close=1011@between-turns,count=2",
    "close=1012@mid-turn,count=2",
    "error=500@mid-turn,count=1",
    "http=429,count=3",
    "http=503,count=3",
    "http=401,count=2",
    "cut=fin@flush,count=1",
    "cut@flushed,count=1",
    "cut@opened,count=2",
    "connected=late:2s,count=2",
    "duplicate,count=2",
    "pace=1.6,count=1",
)
"""Faults of the emulated provider, as its command line writes them. Each occurs a few times."""


MAX_LATE_S: Final = 0.9
"""Maximum lateness of a message at which the end of a turn is placed correctly.

It includes the provider's own latency (guarantees, "How exact the end of a turn is"). A longer
stall ends in a cut.
"""


class FaultSpec(NamedTuple):
    """How a kind of fault is drawn."""

    weight: float
    """0: drawn apart from the others, by `shards.py`."""
    least_s: float
    """Minimum duration in seconds. The maximum is `most_s`; equal if there is none."""
    most_s: float
    triggered: float = 0.0
    """Share of the faults that wait for a script call of their worker."""


FAULTS: Final[Mapping[FaultKind, FaultSpec]] = {
    "crash": FaultSpec(10, 0.05, 8.0, 0.6),
    "vanish": FaultSpec(2, 0.5, 12.0, 0.4),
    "pause": FaultSpec(5, 0.1, 10.0, 0.4),
    "stop": FaultSpec(4, 0.05, 3.0, 0.4),
    "stop-twice": FaultSpec(1, 0.05, 3.0, 0.4),
    "skew": FaultSpec(1, -1.0, 1.0),
    "redis-cut": FaultSpec(4, 0.0, 0.0, 0.6),
    "partition": FaultSpec(4, 0.3, 8.0, 0.4),
    "lost-reply": FaultSpec(6, 0.0, 0.0, 1.0),
    "redis-restart": FaultSpec(2, 0.0, 6.0, 0.3),
    "redis-failover": FaultSpec(1, 0.05, 3.0, 0.5),
    "redis-full": FaultSpec(2, 0.2, 3.0),
    "redis-slow": FaultSpec(2, 0.5, 6.0),
    "redis-late": FaultSpec(2, 0.05, 0.6, 0.3),
    "redis-jump": FaultSpec(1, -4.0, 8.0),
    "scripts-flushed": FaultSpec(1, 0.0, 0.0),
    "group-destroyed": FaultSpec(1, 0.0, 0.0, 0.3),
    "entry-deleted": FaultSpec(1, 0.0, 0.0, 0.3),
    "orphaned": FaultSpec(1, 0.5, 8.0, 0.3),
    "slot-moved": FaultSpec(0, 0.05, 4.0, 0.6),
    "provider-cut": FaultSpec(6, 0.0, 0.0, 0.3),
    "provider-cut-at-byte": FaultSpec(4, 0.0, 0.0),
    "provider-stall": FaultSpec(4, 0.05, 12.0),
    "provider-away": FaultSpec(3, 0.3, 8.0),
    "provider-slow": FaultSpec(1, 0.5, 4.0),
    "provider-fault": FaultSpec(5, 0.0, 0.0),
}
"""Kinds of faults. The weights are those of the chaos runs, roughly."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault of a plan."""

    kind: FaultKind
    at_s: float
    """Seconds from the start of the first session."""
    seconds: float = 0.0
    """Duration; of `skew` and `redis-jump` how far the clock moves."""
    target: Annotated[int, Meta(ge=0)] = 0
    """Number of the worker; of a fault of a provider also selects the provider."""
    in_state: str = ""
    """State of a session of the target for which the fault waits first: a phase, or a state of the
    turn tracker; empty: it does not wait."""
    after: str = ""
    """Script at whose next call by the target the fault strikes; empty: at `at_s`."""
    steps: Annotated[int, Meta(ge=0)] = 0
    """Callbacks of the worker that still run before the fault strikes."""
    spec: str = ""
    """Fault of the emulated provider, as its command line writes it; of `slot-moved` a key."""


class FleetSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session of a plan."""

    at_s: float
    """Seconds from the start of the first session."""
    script: ScriptedSession
    providers: tuple[Literal["cartesia", "flux"], ...] = ()
    """Providers that the session's entry names."""
    config: TurnConfig = TurnConfig()
    """Turn detection that the session's entry asks for."""
    bad_audio: BadAudioKind | None = None
    """What is wrong with some entries of its audio."""
    bad_audio_share: float = 0.0
    """Share of the chunks with, or after, a bad entry."""
    crashes: Annotated[int, Meta(ge=0)] = 0
    """Number of internal errors with which workers fail at it."""
    crash_turn: Annotated[int, Meta(ge=0)] = 0
    """First turn at which they fail."""
    mark_share: float = 0.0
    """Share of the chunks with a mark."""
    forced_end_share: float = 0.0
    """Share of the chunks outside of words that end the turn."""

    @property
    def encoding(self) -> Encoding:
        """Encoding of its audio."""
        return Encoding(self.script.audio.encoding)

    @property
    def always_crashes(self) -> bool:
        """Whether no worker can run it to its end."""
        return self.crashes >= ALWAYS


class BadEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session entry that workers have to reject."""

    at_s: float
    """Seconds from the start of the first session."""
    kind: BadEntryKind
    name: str
    """Id of its session, unless the kind takes that of another session."""
    target: Annotated[int, Meta(ge=0)] = 0
    """Number of a session of the plan, with whose lane and audio format it is announced."""
    audio_first: bool = False
    """Whether audio is appended before it."""


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a fleet."""

    seed: int
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = 1
    shards: Annotated[int, Meta(ge=1)] = 1
    """Number of Redis servers; more than one are a cluster."""
    max_sessions: Annotated[int, Meta(ge=1)] = 100
    lease_ms: Annotated[int, Meta(ge=2_000)] = 2_000
    drain_s: float = 2.0
    providers: str = "cartesia"
    failover_s: float = 2.0
    connections: Annotated[int, Meta(ge=0)] = 0
    """Maximum sockets of the fleet at the providers; 0 for no limit."""
    update_interval_ms: int = 500
    replay_speed: float = 1.5
    """`TURNBUS_REPLAY_SPEED`. Without word times, a provider's delay counts times this speed: a
    faster replay exceeds what is promised (guarantees, "How exact the end of a turn is")."""
    max_lag_s: float = 600.0
    park_s: float = 120.0
    latency_ms: float = 100.0
    """Event latency of the providers."""
    late_s: float = 0.0
    """Mean time by which single messages of Flux are late beyond that; 0 if none are."""
    hasty_share: float = 0.0
    """Share of the providers' connections that end turns at shorter pauses: a replay on such a
    connection divides the audio in another way."""
    rewording: bool = False
    text_style: str = "leading"
    sessions: tuple[FleetSession, ...]
    bad_entries: tuple[BadEntry, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def seconds(self) -> float:
        """Time from the first session's start to the last chunk, without faults."""
        return max((each.at_s + each.script.seconds for each in self.sessions), default=0.0)

    @property
    def session_seconds(self) -> float:
        """Sum of the sessions' durations."""
        return sum(each.script.seconds for each in self.sessions)


def encode_plan(plan: FleetPlan) -> str:
    """Return the plan as JSON."""
    return msgspec.json.encode(plan).decode()


def decode_plan(text: str | bytes) -> FleetPlan:
    """Return the plan of a JSON text. Raises msgspec's ValidationError."""
    return msgspec.json.decode(text, type=FleetPlan)
