"""A fault waits for a state of a session, and strikes in it."""

import os
import subprocess
import sys

import msgspec
import pytest

from tests.chaos.script import ScriptedSession, Turn
from tests.simulation.fleet.plan import Fault, FleetPlan, FleetSession, encode_plan
from worker.local.emulator.engines.base import AudioFormat

SESSION = FleetSession(
    at_s=0.0,
    script=ScriptedSession(
        name="call-0",
        audio=AudioFormat("pcm_s16le", 8_000),
        turns=(Turn((400, 400, 400), 1_000, stalls=False),),
        seed="1",
    ),
)
LOST = Fault(kind="provider-cut", at_s=0.0, in_state="eager/eager")


class Met(msgspec.Struct):
    """Part of an outcome."""

    findings: list[object]
    faults: dict[str, int]
    states: dict[str, dict[str, int]]


def run(*faults: Fault) -> Met:
    """Run a plan in a process of its own, in which the order of sets is fixed."""
    plan = FleetPlan(seed=1, sessions=(SESSION,), faults=faults)
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--plan", "/dev/stdin", "--json"],
        input=encode_plan(plan),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return msgspec.json.decode(done.stdout, type=Met)


@pytest.mark.parametrize("state", ["parked", "speaking/speaking", "eager/eager"])
def test_fault_strikes_in_the_state_it_waits_for(state: str) -> None:
    met = run(Fault(kind="pause", at_s=0.0, seconds=0.1, in_state=state))
    assert met.states["pause"][state] == 1


@pytest.mark.parametrize("state", ["eager/none", "eager/speaking"])
def test_fault_waits_for_what_another_brings_about(state: str) -> None:
    met = run(LOST, Fault(kind="pause", at_s=0.0, seconds=0.1, in_state=state))
    assert met.states["provider-cut"]["eager/eager"] == 1
    assert met.states["pause"][state] == 1


def test_fault_strikes_if_its_state_never_occurs() -> None:
    met = run(Fault(kind="skew", at_s=0.0, seconds=0.1, in_state="speaking/none"))
    assert met.faults == {"skew": 1}
