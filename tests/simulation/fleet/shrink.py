"""Makes a failing plan smaller: fewest sessions, fewest faults, then simpler parameters.

A step is kept if the smaller plan fails in the same way. The world's seed stays, but a smaller plan
runs in another order: what matters is that the result still fails.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from schemas.audio import TurnConfig
from tests.simulation.fleet.plan import Fault, FleetPlan, FleetSession

T = TypeVar("T")

Fails = Callable[[FleetPlan], bool]
"""Whether a plan fails in the same way as the original."""


def shrink(plan: FleetPlan, fails: Fails, runs: int = 400) -> FleetPlan:
    """Return a smaller plan that fails too, after at most this many runs."""
    return _Shrinker(fails, runs).shrink(plan)


class _Shrinker:
    def __init__(self, fails: Fails, runs: int) -> None:
        self._fails = fails
        self._left = runs

    def shrink(self, plan: FleetPlan) -> FleetPlan:
        before = None
        while before != plan and self._left > 0:
            before = plan
            plan = self._with_fewest(plan, "sessions")
            plan = self._with_fewest(plan, "faults")
            plan = self._with_fewest(plan, "bad_entries")
            plan = self._simplified(plan)
        return plan

    def _try(self, plan: FleetPlan) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._fails(plan)

    def _with_fewest(self, plan: FleetPlan, field: str) -> FleetPlan:
        """Remove half of the parts, then smaller shares, as delta debugging does."""
        parts: Sequence[Any] = getattr(plan, field)
        size = len(parts)
        while size:
            start = 0
            while start < len(parts):
                fewer = (*parts[:start], *parts[start + size :])
                smaller = replace(plan, **{field: fewer})
                if smaller.sessions and self._try(smaller):
                    plan, parts = smaller, fewer
                else:
                    start += size
            size //= 2
        return plan

    def _simplified(self, plan: FleetPlan) -> FleetPlan:
        """Apply each simplification that still fails."""
        for simpler in _SIMPLER_PLANS:
            for candidate in simpler(plan):
                if candidate != plan and self._try(candidate):
                    plan = candidate
                    break
        for nth in range(len(plan.sessions)):
            for simplify in _SIMPLER_SESSIONS:
                session = plan.sessions[nth]
                for other in simplify(session):
                    candidate = replace(plan, sessions=_replaced(plan.sessions, nth, other))
                    if other != session and self._try(candidate):
                        plan = candidate
                        break
        for nth in range(len(plan.faults)):
            for fault in _simpler_faults(plan.faults[nth]):
                candidate = replace(plan, faults=_replaced(plan.faults, nth, fault))
                if fault != plan.faults[nth] and self._try(candidate):
                    plan = candidate
        return plan


def _replaced(parts: Sequence[T], nth: int, part: T) -> tuple[T, ...]:
    return (*parts[:nth], part, *parts[nth + 1 :])


_DEFAULTS = FleetPlan(seed=0, sessions=())


def _default(name: str) -> Callable[[FleetPlan], Iterator[FleetPlan]]:
    def candidates(plan: FleetPlan) -> Iterator[FleetPlan]:
        yield replace(plan, **{name: getattr(_DEFAULTS, name)})

    return candidates


def _fewer_workers(plan: FleetPlan) -> Iterator[FleetPlan]:
    for count in range(1, plan.workers):
        yield replace(plan, workers=count)


_SIMPLER_PLANS: Sequence[Callable[[FleetPlan], Iterator[FleetPlan]]] = (
    _fewer_workers,
    *(
        _default(name)
        for name in FleetPlan.__struct_fields__
        if name not in ("seed", "workers", "sessions", "faults", "bad_entries")
    ),
)


def _fewer_turns(session: FleetSession) -> Iterator[FleetSession]:
    turns = session.script.turns
    for nth in range(len(turns)):
        if len(turns) > 1:
            yield _with_script(session, turns=(*turns[:nth], *turns[nth + 1 :]))


def _shorter_turns(session: FleetSession) -> Iterator[FleetSession]:
    for nth, turn in enumerate(session.script.turns):
        for words in (0, len(turn.pauses_ms) // 2):
            shorter = replace(turn, pauses_ms=turn.pauses_ms[:words])
            yield _with_script(session, turns=_replaced(session.script.turns, nth, shorter))


def _plain(session: FleetSession) -> Iterator[FleetSession]:
    plain = {"mode": "plain", "random_sizes": False, "bulk": False, "announced_late": False}
    yield _with_script(session, **plain, linger_s=0.0)
    for name, value in plain.items():
        yield _with_script(session, **{name: value})


def _usual_audio(session: FleetSession) -> Iterator[FleetSession]:
    audio = {"encoding": "pcm_s16le", "sample_rate": 8_000}
    yield _with_script(
        session, chunk_ms=100, audio=msgspec.convert(audio, type(session.script.audio))
    )


def _without_signals(session: FleetSession) -> Iterator[FleetSession]:
    yield replace(session, mark_share=0.0, forced_end_share=0.0)


def _without_errors(session: FleetSession) -> Iterator[FleetSession]:
    yield replace(session, bad_audio=None, bad_audio_share=0.0)
    yield replace(session, crashes=0, crash_turn=0)


def _usual_turns(session: FleetSession) -> Iterator[FleetSession]:
    yield replace(session, config=TurnConfig())


def _usual_place(session: FleetSession) -> Iterator[FleetSession]:
    yield replace(_with_script(session, lane="0", out="lane"), at_s=0.0, providers=())


def _with_script(session: FleetSession, **changes: Any) -> FleetSession:
    return replace(session, script=replace(session.script, **changes))


_SIMPLER_SESSIONS: Sequence[Callable[[FleetSession], Iterator[FleetSession]]] = (
    _fewer_turns,
    _shorter_turns,
    _plain,
    _usual_audio,
    _without_signals,
    _without_errors,
    _usual_turns,
    _usual_place,
)


def _simpler_faults(fault: Fault) -> Iterator[Fault]:
    yield replace(fault, in_state="", after="", steps=0)
    yield replace(fault, in_state="")
    yield replace(fault, after="", steps=0)
    yield replace(fault, steps=0)
    yield replace(fault, target=0)
    yield replace(fault, at_s=float(round(fault.at_s)), seconds=float(round(fault.seconds)))
