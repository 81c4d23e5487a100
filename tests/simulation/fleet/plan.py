"""The plan of a simulated fleet: plain data, drawn from a seed, printed and read as JSON.

The plan holds every choice of a run except the order of events, which the world draws from `seed`.
So a plan without a session or a fault is a plan too, and a failure can be made smaller.
"""

import math
from collections.abc import Mapping
from random import Random
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from tests.chaos.script import Mode, ScriptedSession, Turn
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script_text import draw_style

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
    "provider-cut",
    "provider-cut-at-byte",
    "provider-stall",
    "provider-away",
    "provider-slow",
    "provider-fault",
]

TRIGGERS: Final = (
    *("commit", "commit", "commit", "claim", "heartbeat", "take_over", "release"),
    *("request_permits", "release_permit", "complete", "announce", "announce"),
)
"""Scripts at whose call a fault may strike, some drawn more often; `announce` is a producer's new
session, whose entry a worker has not received yet."""

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


class FaultSpec(NamedTuple):
    """How a kind of fault is drawn."""

    weight: float
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
    after: str = ""
    """Script at whose next call by the target the fault strikes; empty: at `at_s`."""
    steps: Annotated[int, Meta(ge=0)] = 0
    """Callbacks of the worker that still run before the fault strikes."""
    spec: str = ""
    """Fault of the emulated provider, as its command line writes it."""


class FleetSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session of a plan."""

    at_s: float
    """Seconds from the start of the first session."""
    script: ScriptedSession
    providers: tuple[Literal["cartesia", "flux"], ...] = ()
    """Providers that the session's entry names."""
    mark_share: float = 0.0
    """Share of the chunks with a mark."""
    forced_end_share: float = 0.0
    """Share of the chunks outside of words that end the turn."""


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a fleet."""

    seed: int
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = 1
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
    latency_ms: float = 100.0
    """Event latency of the providers."""
    late_s: float = 0.0
    """Mean time by which single messages of Flux are late beyond that; 0 if none are."""
    rewording: bool = False
    text_style: str = "leading"
    sessions: tuple[FleetSession, ...]
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


def draw_plan(seed: int) -> FleetPlan:
    """Draw a plan."""
    rng = Random(f"{seed} fleet")
    providers = rng.choice(
        ("cartesia", "cartesia", "flux", "cartesia,flux", "cartesia,flux", "flux,cartesia")
    )
    rewording = rng.random() < 0.15
    sessions = _draw_sessions(rng, seed, providers)
    workers = rng.choice((1, 2, 2, 3, 3, 3))
    plan = FleetPlan(
        seed=seed,
        workers=workers,
        max_sessions=rng.choice((100, 100, math.ceil(len(sessions) / workers) + 2)),
        lease_ms=rng.choice((2_000, 2_000, 3_000, 5_000)),
        drain_s=rng.choice((0.0, 1.0, 3.0)),
        providers=providers,
        failover_s=rng.choice((1.0, 2.0, 2.0, 4.0)),
        connections=rng.choice((0, 0, 0, max(2, len(sessions) // 2), len(sessions) + 2)),
        update_interval_ms=rng.choice((0, 500, 500)),
        replay_speed=rng.choice((1.5, 1.5, 3.0, 0.0) if providers == "flux" else (1.5, 1.5, 1.0)),
        max_lag_s=rng.choice((600.0, 600.0, 0.0, SHORT_LAG_S)),
        latency_ms=rng.choice((20.0, 100.0, 300.0, 500.0)),
        late_s=Random(f"{seed} late").choice((0.0, 0.0, 0.3, 1.0)) if "flux" in providers else 0.0,
        rewording=rewording,
        text_style=draw_style(seed, rewording=rewording) if rng.random() < 0.3 else "leading",
        sessions=sessions,
    )
    return msgspec.structs.replace(plan, faults=tuple(_draw_faults(rng, plan)))


_FORMATS: Final = (
    AudioFormat("pcm_s16le", 8_000),
    AudioFormat("pcm_s16le", 8_000),
    AudioFormat("pcm_mulaw", 8_000),
    AudioFormat("pcm_alaw", 8_000),
    AudioFormat("pcm_s16le", 16_000),
    AudioFormat("pcm_f32le", 8_000),
)
_CHUNKS_MS: Final = (40, 100, 100, 100, 200, 200)


def _draw_sessions(rng: Random, seed: int, providers: str) -> tuple[FleetSession, ...]:
    count = rng.choice((1, 2, 3, 5, 8, 12, MAX_SESSIONS))
    stagger_s = rng.choice((0.0, 0.1, 0.5, 2.0))
    most_turns = rng.choice((1, 3, 5))
    return tuple(
        _draw_session(rng, seed, number, number * stagger_s, rng.randint(1, most_turns), providers)
        for number in range(count)
    )


def _draw_session(
    rng: Random, seed: int, number: int, at_s: float, turns: int, providers: str
) -> FleetSession:
    modes: tuple[Mode, ...] = ("plain", "numbered", "resending", "restarting")
    script = ScriptedSession(
        name=f"call-{number}",
        audio=rng.choice(_FORMATS),
        lane=rng.choice(("0", "0", "0", "1")),
        out=rng.choice(("lane", "lane", "lane", "session")),
        mode=rng.choice(modes),
        chunk_ms=rng.choice(_CHUNKS_MS),
        random_sizes=rng.random() < 0.2,
        bulk=rng.random() < 0.03,
        announced_late=rng.random() < 0.1,
        linger_s=rng.choice((0.0, 0.0, 0.3, 3.0)),
        turns=tuple(_draw_turn(rng) for _ in range(turns)),
        seed=f"{seed} {number}",
    )
    named: tuple[Literal["cartesia", "flux"], ...] = ()
    if "," in providers and rng.random() < 0.3:
        named = rng.choice((("cartesia",), ("flux",), ("flux", "cartesia")))
    signals = rng.random() < 0.3
    return FleetSession(
        at_s=round(at_s, 3),
        script=script,
        providers=named,
        mark_share=0.05 if signals else 0.0,
        forced_end_share=rng.choice((0.0, 0.02)) if signals else 0.0,
    )


def _draw_turn(rng: Random) -> Turn:
    words = rng.choice((1, 2, 3, 4, 6, 6, 20))
    pauses = tuple(rng.choice((0, 0, rng.randint(20, 400))) for _ in range(words - 1))
    stalls = rng.random() < 0.15
    after_ms = rng.choice((rng.randint(600, 900), rng.randint(600, 3_000)))
    if stalls:
        after_ms = rng.randint(1_800, 3_000)
    return Turn(pauses, after_ms, stalls)


def _draw_faults(rng: Random, plan: FleetPlan) -> list[Fault]:
    """Draw the faults: few kinds or all, quiet or violent, so that seeds differ in kind."""
    kinds: list[FaultKind] = list(FAULTS)
    if rng.random() < 0.6:
        kinds = rng.sample(kinds, rng.randint(1, 6))
    if plan.max_lag_s == SHORT_LAG_S:
        kinds = [kind for kind in kinds if kind not in ("skew", "redis-jump")] or ["crash"]
    mean_s = math.exp(rng.uniform(math.log(0.3), math.log(20.0)))
    faults = list[Fault]()
    at_s = rng.expovariate(1 / mean_s)
    while at_s < plan.seconds + 2.0 and len(faults) < MAX_FAULTS:
        (kind,) = rng.choices(kinds, [FAULTS[kind].weight for kind in kinds])
        faults.append(_draw_fault(rng, plan, kind, round(at_s, 3)))
        at_s += rng.expovariate(1 / mean_s)
    return faults


def _draw_fault(rng: Random, plan: FleetPlan, kind: FaultKind, at_s: float) -> Fault:
    spec = FAULTS[kind]
    triggered = rng.random() < spec.triggered
    return Fault(
        kind=kind,
        at_s=at_s,
        seconds=round(_draw_seconds(rng, spec), 3),
        target=rng.randrange(plan.workers) if rng.random() < 0.9 else rng.randrange(6),
        after=rng.choice(TRIGGERS) if triggered else "",
        steps=rng.choice((0, 0, rng.randint(1, 20), rng.randint(1, 200))) if triggered else 0,
        spec=rng.choice(PROVIDER_FAULTS) if kind == "provider-fault" else "",
    )


def _draw_seconds(rng: Random, spec: FaultSpec) -> float:
    """Draw a duration: a short one as often as a long one, or a shift in both directions."""
    if spec.least_s <= 0 or spec.most_s <= 0:
        return rng.uniform(spec.least_s, spec.most_s)
    return math.exp(rng.uniform(math.log(spec.least_s), math.log(spec.most_s)))
