"""Draws the plan of a seed: quiet or violent, small or large, so that seeds differ in kind."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from schemas.audio import TurnConfig
from tests.chaos.script import Mode, ScriptedSession, Turn
from tests.simulation.fleet.plan import (
    ALWAYS,
    FAULTS,
    LOST_IN,
    MAX_FAULTS,
    MAX_SESSIONS,
    PROVIDER_FAULTS,
    SHORT_LAG_S,
    STATES_AWAITED,
    TRIGGERS,
    BadAudioKind,
    BadEntry,
    BadEntryKind,
    Fault,
    FaultKind,
    FaultSpec,
    FleetPlan,
    FleetSession,
)
from worker.leases.retries import MAX_CRASHES
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script_text import draw_style

STATE_SHARE: Final = 0.3
"""Share of the faults at random times that wait for a state of a session."""

AIMED_FAULTS: Final = 5

BAD_ENTRIES_SHARE: Final = 0.3
"""Share of the plans with bad session entries."""

BAD_AUDIO_SHARE: Final = 0.08
"""Share of the sessions with bad audio entries."""

CRASH_SHARE: Final = 0.04
"""Share of the sessions at which workers fail with an internal error."""


def draw_plan(seed: int) -> FleetPlan:
    """Draw a plan."""
    rng = Random(f"{seed} fleet")
    providers = rng.choice(
        ("cartesia", "cartesia", "flux", "cartesia,flux", "cartesia,flux", "flux,cartesia")
    )
    rewording = rng.random() < 0.15
    aim, lags_s = _aim(seed), (600.0, 600.0, 0.0, SHORT_LAG_S)
    if aim is not None and aim.kind in _WRONG_CLOCKS:
        lags_s = (600.0, 600.0, 0.0, 0.0)
    sessions = _draw_sessions(rng, seed, providers, aimed=aim is not None)
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
        max_lag_s=rng.choice(lags_s),
        park_s=rng.choice((120.0, 120.0, 1.0)),
        latency_ms=rng.choice((20.0, 100.0, 300.0, 500.0)),
        late_s=Random(f"{seed} late").choice((0.0, 0.0, 0.3, 1.0)) if "flux" in providers else 0.0,
        hasty_share=rng.choice((0.0, 0.0, 0.5)),
        rewording=rewording,
        text_style=draw_style(seed, rewording=rewording) if rng.random() < 0.3 else "leading",
        sessions=sessions,
        bad_entries=tuple(_draw_bad_entries(rng, sessions)),
    )
    faults = [*_draw_aimed(rng, plan, aim)] if aim is not None else []
    faults += _draw_faults(rng, plan)
    return msgspec.structs.replace(plan, faults=tuple(faults[:MAX_FAULTS]))


_KINDS: Final = tuple(kind for kind, spec in FAULTS.items() if spec.weight)

_WRONG_CLOCKS: Final = ("skew", "redis-jump")


class Aim(NamedTuple):
    """What a seed aims at: a kind of fault that meets a session in a state."""

    kind: FaultKind
    state: str


AIMS: Final = tuple(Aim(kind, state) for state in STATES_AWAITED for kind in _KINDS)


def _aim(seed: int) -> Aim | None:
    """Return the aim of every second seed: together they have each aim in turn."""
    number, aimed = divmod(seed, 2)
    return AIMS[number % len(AIMS)] if aimed else None


def _draw_aimed(rng: Random, plan: FleetPlan, aim: Aim) -> Iterator[Fault]:
    """Draw the faults that the seed aims with."""
    for _ in range(AIMED_FAULTS):
        at_s = round(rng.uniform(0.0, plan.seconds * 0.8), 3)
        yield from _draw_fault(rng, plan, aim.kind, at_s, aim.state)


_FORMATS: Final = (
    AudioFormat("pcm_s16le", 8_000),
    AudioFormat("pcm_s16le", 8_000),
    AudioFormat("pcm_mulaw", 8_000),
    AudioFormat("pcm_alaw", 8_000),
    AudioFormat("pcm_s16le", 16_000),
    AudioFormat("pcm_f32le", 8_000),
)
_CHUNKS_MS: Final = (40, 100, 100, 100, 200, 200)

_EAGER_CONFIGS: Final = (
    *(TurnConfig(turn_eager_end_threshold=eager) for eager in (0.7, 0.6)),
    *(
        TurnConfig(turn_start_threshold=0.8, turn_eager_end_threshold=eager, turn_end_threshold=end)
        for eager in (0.7, 0.5)
        for end in (0.2, 0.1)
    ),
)
"""Turn detection of hesitant speakers. A pause of 160 to 320 ms is an eager end, one of 480 to
640 ms an end. Flux sends eager ends only if their threshold is set."""


def _draw_sessions(
    rng: Random, seed: int, providers: str, *, aimed: bool
) -> tuple[FleetSession, ...]:
    count = rng.choice((2, 3, 5, 8) if aimed else (1, 2, 3, 5, 8, 12, MAX_SESSIONS))
    stagger_s = rng.choice((0.0, 0.1, 0.5, 2.0))
    most_turns = rng.choice((3, 5) if aimed else (1, 3, 5))
    hesitant_share = 1.0 if aimed else rng.choice((0.0, 0.5, 1.0))
    return tuple(
        _draw_session(
            rng,
            seed,
            number,
            at_s=number * stagger_s,
            turns=rng.randint(1, most_turns),
            providers=providers,
            hesitant=rng.random() < hesitant_share,
        )
        for number in range(count)
    )


def _draw_session(
    rng: Random,
    seed: int,
    number: int,
    *,
    at_s: float,
    turns: int,
    providers: str,
    hesitant: bool,
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
        turns=tuple(_draw_turn(rng, hesitant=hesitant) for _ in range(turns)),
        seed=f"{seed} {number}",
    )
    named: tuple[Literal["cartesia", "flux"], ...] = ()
    if "," in providers and rng.random() < 0.3:
        named = rng.choice((("cartesia",), ("flux",), ("flux", "cartesia")))
    signals = rng.random() < 0.3
    bad_audio = rng.choice(get_args(BadAudioKind)) if rng.random() < BAD_AUDIO_SHARE else None
    if bad_audio == "bad-seq" and script.mode != "plain":
        bad_audio = "bad-mark"  # a chunk without its number would be a hole
    crashes = rng.choice((1, 2, MAX_CRASHES - 1, ALWAYS)) if rng.random() < CRASH_SHARE else 0
    return FleetSession(
        at_s=round(at_s, 3),
        script=script,
        providers=named,
        bad_audio=bad_audio,
        bad_audio_share=0.0 if bad_audio is None else rng.choice((0.02, 0.2)),
        crashes=crashes,
        crash_turn=rng.randrange(turns) if crashes else 0,
        config=rng.choice(_EAGER_CONFIGS) if hesitant else TurnConfig(),
        mark_share=0.05 if signals else 0.0,
        forced_end_share=rng.choice((0.0, 0.02)) if signals else 0.0,
    )


def _draw_bad_entries(rng: Random, sessions: Sequence[FleetSession]) -> Iterator[BadEntry]:
    if rng.random() >= BAD_ENTRIES_SHARE:
        return
    last_s = max(each.at_s + each.script.seconds for each in sessions)
    for number in range(rng.randint(1, 6)):
        yield BadEntry(
            at_s=round(rng.uniform(0.0, last_s), 3),
            kind=rng.choice(get_args(BadEntryKind)),
            name=f"bad-{number}",
            target=rng.randrange(len(sessions)),
            audio_first=rng.random() < 0.5,
        )


def _draw_turn(rng: Random, *, hesitant: bool) -> Turn:
    """Draw a turn. A hesitant speaker pauses for so long that the turn ends eagerly, or ends."""
    words = rng.choice((1, 2, 3, 4, 6, 6, 20))
    choices = (0, rng.choice((450, 650))) if hesitant else (0, 0, 400)
    pauses = tuple(rng.randint(min(20, most), most) for most in rng.choices(choices, k=words - 1))
    stalls = rng.random() < 0.15
    after_ms = rng.choice((rng.randint(600, 900), rng.randint(600, 3_000)))
    if stalls:
        after_ms = rng.randint(1_800, 3_000)
    return Turn(pauses, after_ms, stalls)


def _draw_faults(rng: Random, plan: FleetPlan) -> list[Fault]:
    """Draw the faults: few kinds or all, quiet or violent, so that seeds differ in kind."""
    kinds: list[FaultKind] = list(_KINDS)
    if rng.random() < 0.6:
        kinds = rng.sample(kinds, rng.randint(1, 6))
    if plan.max_lag_s == SHORT_LAG_S:
        kinds = [kind for kind in kinds if kind not in _WRONG_CLOCKS] or ["crash"]
    mean_s = math.exp(rng.uniform(math.log(0.3), math.log(20.0)))
    faults = list[Fault]()
    at_s = rng.expovariate(1 / mean_s)
    while at_s < plan.seconds + 2.0 and len(faults) < MAX_FAULTS:
        (kind,) = rng.choices(kinds, [FAULTS[kind].weight for kind in kinds])
        faults += _draw_fault(rng, plan, kind, round(at_s, 3))
        at_s += rng.expovariate(1 / mean_s)
    return faults[:MAX_FAULTS]


def _draw_fault(
    rng: Random, plan: FleetPlan, kind: FaultKind, at_s: float, in_state: str = ""
) -> Iterator[Fault]:
    """Yield a fault, after the one that brings about the state for which it waits."""
    spec = FAULTS[kind]
    triggered = rng.random() < spec.triggered
    if not in_state and rng.random() < STATE_SHARE:
        in_state = rng.choice(STATES_AWAITED)
    fault = Fault(
        kind=kind,
        at_s=at_s,
        seconds=round(draw_seconds(rng, spec), 3),
        target=rng.randrange(plan.workers) if rng.random() < 0.9 else rng.randrange(6),
        in_state=in_state,
        after=rng.choice(TRIGGERS) if triggered else "",
        steps=rng.choice((0, 0, rng.randint(1, 20), rng.randint(1, 200))) if triggered else 0,
        spec=rng.choice(PROVIDER_FAULTS) if kind == "provider-fault" else "",
    )
    if in_state in LOST_IN:
        yield Fault(kind="provider-cut", at_s=at_s, target=fault.target, in_state=LOST_IN[in_state])
    yield fault


def draw_seconds(rng: Random, spec: FaultSpec) -> float:
    """Draw a duration: a short one as often as a long one, or a shift in both directions."""
    if spec.least_s <= 0 or spec.most_s <= 0:
        return rng.uniform(spec.least_s, spec.most_s)
    return math.exp(rng.uniform(math.log(spec.least_s), math.log(spec.most_s)))
