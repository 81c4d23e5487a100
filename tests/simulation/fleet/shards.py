"""Clusters: draws which plans have one, and the slots that move during its sessions.

The generator is its own, so that the rest of a plan is the same with one server.
"""

from random import Random
from typing import Final

from msgspec.structs import replace

from tests.simulation.fleet.draw import draw_seconds
from tests.simulation.fleet.plan import FAULTS, TRIGGERS, Fault, FleetPlan

CLUSTER_SHARE: Final = 0.15
"""Share of the plans whose Redis is a cluster."""

ALIVE: Final = "stt:alive:CONSUMER"
"""The channel of the target worker, which has another name in each of its processes."""

KEYS: Final = (
    *("{0}", "{0}", "{0}", "{1}", "{1}"),
    *("stt:sessions", "stt:sessions", "stt:gate", "stt:workers", "stt:lanes"),
    *("stt:breaker:{cartesia}", "stt:breaker:{flux}", ALIVE, ALIVE),
)
"""Keys whose slot may move, some drawn more often; `{0}` stands for all keys of a lane."""


def with_shards(plan: FleetPlan) -> FleetPlan:
    """Return the plan, some with a cluster. Its masters have no replicas: none fails over."""
    rng = Random(f"{plan.seed} cluster")
    if rng.random() >= CLUSTER_SHARE:
        return plan
    moves = [_draw_move(rng, plan) for _ in range(rng.choice((0, 1, 1, 2, 3, 6)))]
    others = [fault for fault in plan.faults if fault.kind != "redis-failover"]
    return replace(plan, shards=rng.choice((2, 3)), faults=(*others, *moves))


def _draw_move(rng: Random, plan: FleetPlan) -> Fault:
    spec = FAULTS["slot-moved"]
    return Fault(
        kind="slot-moved",
        at_s=round(rng.uniform(0.0, plan.seconds), 3),
        seconds=round(draw_seconds(rng, spec), 3),
        target=rng.randrange(plan.workers),
        after=rng.choice(TRIGGERS) if rng.random() < spec.triggered else "",
        spec=rng.choice(KEYS),
    )
