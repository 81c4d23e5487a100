"""What the Redis of simulated fleets replied is what real servers reply at the same times.

`PYTHONHASHSEED=0 pytest -m slow tests/simulation/replay --simulation-seed N` repeats one seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice, pairwise
from pathlib import Path

import pytest

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.plan import Fault
from tests.simulation.redis.dialect import REDIS_7_0, VALKEY_9, Dialect
from tests.simulation.replay.frozen_server import ClockNotFrozenError, FrozenServer
from tests.simulation.replay.recording import Ran, Restarted, Step, record
from tests.simulation.replay.replay import Difference, replay
from worker.local.redis import find_server

pytestmark = pytest.mark.slow

SEEDS = 5
"""Number of fleets with each fault."""

FAULTS: Mapping[str, Callable[[Fault], bool]] = {
    "killed": lambda fault: fault.kind == "redis-restart",
    "lost writes": lambda fault: fault.kind == "redis-failover",
    "full": lambda fault: fault.kind == "redis-full",
    "time went back": lambda fault: fault.kind == "redis-jump" and fault.seconds < 0,
}
"""What happens to Redis, and the faults of a plan that do it."""


@pytest.fixture(params=[VALKEY_9, REDIS_7_0], ids=["valkey", "redis_7"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Which server the model is compared with."""
    dialect: Dialect = request.param
    return dialect


@pytest.fixture
def binary(dialect: Dialect, request: pytest.FixtureRequest) -> Path:
    if dialect is VALKEY_9:
        return find_server()
    path: Path = request.getfixturevalue("redis_7_binary")
    return path


def replay_on(binary: Path, steps: Sequence[Step]) -> Difference | None:
    try:
        with FrozenServer.start(binary, steps[0].now_us) as server:
            return replay(steps, server)
    except ClockNotFrozenError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("fault", FAULTS)
def test_real_servers_reply_as_in_the_fleets(
    binary: Path, dialect: Dialect, fault: str, request: pytest.FixtureRequest
) -> None:
    only: int | None = request.config.getoption("--simulation-seed")
    seen: set[str] = set()
    total = 0
    for seed in seeds_with(fault) if only is None else [only]:
        steps = record(seed, dialect)
        difference = replay_on(binary, steps)
        assert difference is None, f"seed {seed}, {difference}"
        seen |= faults_in(steps)
        total += len(steps)
    print(f"{total} steps of fleets: equal replies")
    assert only is not None or fault in seen


def seeds_with(fault: str) -> Iterator[int]:
    """Return the first seeds whose plans have a fault."""
    plans = ((seed, draw_plan(seed)) for seed in count(1))
    return islice((seed for seed, plan in plans if any(map(FAULTS[fault], plan.faults))), SEEDS)


def faults_in(steps: Sequence[Step]) -> set[str]:
    """Return which faults of Redis the steps have."""
    restarts = [step for step in steps if isinstance(step, Restarted)]
    found = {
        "killed": any(not step.lost_writes for step in restarts),
        "lost writes": any(step.lost_writes for step in restarts),
        "full": any(isinstance(step, Ran) and step.full for step in steps),
        "time went back": any(after.now_us < before.now_us for before, after in pairwise(steps)),
    }
    return {name for name, is_there in found.items() if is_there}


def test_one_wrong_time_is_a_difference(binary: Path, dialect: Dialect) -> None:
    steps = record(4, dialect)
    nth, added = next(
        (nth, step)
        for nth, step in enumerate(steps)
        if isinstance(step, Ran) and nth > len(steps) // 4
        if step.commands[0][0] == b"XADD" and b"*" in step.commands[0]  # an id by the clock
    )
    steps[nth] = added._replace(now_us=added.now_us + 1_000)
    difference = replay_on(binary, steps)
    assert difference is not None
    assert (difference.step, difference.model) == (nth, added.reply)
