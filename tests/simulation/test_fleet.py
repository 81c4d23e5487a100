"""A simulated fleet keeps every guarantee, for fresh seeds and for kept plans.

`pytest tests/simulation/test_fleet.py --simulation-seed N` repeats the run of one seed.
`TURNBUS_SIMULATION_FIRST` moves the range of the fresh seeds, so that each CI run can have its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.plan import Fault, encode_plan

FIRST_SEED = int(os.environ.get("TURNBUS_SIMULATION_FIRST", "100000"))
SEEDS = 10
"""Number of seeds of one test: about ten seconds on one core."""

TESTS = 5

KEPT = sorted((Path(__file__).parent / "fleet" / "kept").glob("*.json"))
"""Plans that once failed, or reach a rare place. A plan stays the same when its seed draws another.

- claimed-twice-with-one-count: after failovers a worker claims an entry again with the same count.
- dead-letter-while-full: a worker rejects an entry while Redis is full, and is stopped.
- dead-letter-while-its-server-is-away: a worker rejects an entry, and is killed before the dead
  letter's server is back; the next one rejects the entry again.
- eager-end-of-the-first-turn: the lag is unknown; the next pause began before the eager end came.
- early-end-before-a-pause: a replay ends a turn early, after all audio of a paused producer.
- early-end: a replay ends a turn early, before the provider's lag is known, and loses its socket.
- failover-of-an-owner: Redis loses an owner's last events; its next commit is refused with `gap`.
- hidden-session: its entry, its owner and the group are gone; the search of each hour finds it.
- last-word-before-a-pause: a turn moves to a provider without times, and no audio follows its end.
- late-start-of-a-slow-socket: its start is the latest message; the next turn is one word.
- lost-end-and-entry: the same, and the entry is deleted meanwhile.
- lost-end: Redis loses the end of a session before the worker removes its entry.
- moved-breaker: a breaker opens while its slot moves; its script may not remove the key first.
- moved-channel: two masters count the subscribers of a live worker's channel while it moves.
- replaced-session: Redis loses a worker's second claim of its session; the first one goes on.
- restored-while-it-runs: a worker claims the restored entry of a session that it still runs.
- second-stop-during-a-restart: the second SIGTERM of a drain comes when the next process runs.
- slow-socket: all messages of a replay are late, and its start shows by how much.
- slow-socket-of-a-first-turn: the same while the lag is unknown, after a burst.
- start-with-the-end: the first turn's end and the next start arrive together, from a fast provider.
- stopped-session-taken: a refused commit stops a session; its owner lives, and does not renew it.
"""

QUICK_MUTANTS = ("no-fence", "no-replay", "no-tombstone", "second-start")


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command. It has a process of its own, because the order of sets must be fixed."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *options],
        capture_output=True,
        text=True,
        check=False,
    )


def assert_passes(*options: str) -> None:
    result = simulate(*options)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("part", range(TESTS))
def test_fresh_seeds_have_no_violations(part: int, request: pytest.FixtureRequest) -> None:
    only: int | None = request.config.getoption("--simulation-seed")
    if only is not None:
        if part == 0:
            assert_passes("--first", str(only), "--history")
        return
    assert_passes("--first", str(FIRST_SEED + part * SEEDS), "--seeds", str(SEEDS))


@pytest.mark.parametrize("plan", KEPT, ids=lambda plan: plan.stem)
def test_kept_plan_has_no_violations(plan: Path) -> None:
    assert_passes("--plan", str(plan))


@pytest.mark.parametrize("key", ["{0}", "stt:sessions", "stt:gate"])
def test_slot_moves_while_sessions_run(tmp_path: Path, key: str) -> None:
    plan = replace(draw_plan(5), shards=2, workers=2, connections=2)
    move = Fault(kind="slot-moved", at_s=1.0, seconds=1.5, after="commit", spec=key)
    path = tmp_path / "plan.json"
    path.write_text(encode_plan(replace(plan, faults=(move, replace(move, at_s=4.0)))))
    result = simulate("--plan", str(path), "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"faults":{"slot-moved":2}' in result.stdout


def test_two_runs_have_equal_logs() -> None:
    first, second = (simulate("--first", "13", "--seeds", "3", "--json") for _ in range(2))
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.count('"digest"') == 3


@pytest.mark.parametrize("name", QUICK_MUTANTS)
def test_checkers_find_a_worker_without_a_guard(name: str) -> None:
    assert_passes("--mutants", "--only", name)


@pytest.mark.slow
def test_checkers_find_every_mutant() -> None:
    assert_passes("--mutants")


def test_unknown_mutant_is_an_error() -> None:
    result = simulate("--mutants", "--only", "no-such-guard")
    assert result.returncode == 2
    assert "no-fence" in result.stderr
