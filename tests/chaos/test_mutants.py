"""The checker finds the violations of workers with one guard removed."""

from pathlib import Path

import pytest

from tests.chaos.faults import ScheduledFault
from tests.chaos.plan import ChaosPlan
from tests.chaos.report import ChaosReport, text_of
from tests.chaos.run import chaos
from worker.bench.checker import Rule
from worker.bench.terminal import Progress

ROUNDS = 3
"""Maximum number of runs; each finds a mutant except with rare timing."""

# All sessions send audio, most inside a turn: a worker without a replay loses words.
CUTS = tuple(ScheduledFault(1.5 + nth, "stt-cut", nth) for nth in range(8))
CUT_OFF = ChaosPlan(
    seed=106, turns=16, sessions=8, workers=2, faults=("stt-cut",), max_lag_s=0.0, long_every=0
)
# One pause while all sessions send audio; most still do when it ends. The provider is so
# late that events wait for the paused worker; it commits before it detects the takeover.
TAKEOVER = (ScheduledFault(4.0, "wake-alone", 1),)
TAKEN_OVER = ChaosPlan(
    seed=2749,
    turns=64,
    sessions=14,
    workers=2,
    latency_ms=800.0,
    faults=("wake-alone",),
    max_lag_s=0.0,
    long_every=0,
)
# Room for all, or the places of those that ended would have to lapse first.
CAPPED = ChaosPlan(
    seed=106, turns=16, sessions=8, workers=1, connections=8, max_lag_s=0.0, long_every=0
)


@pytest.mark.parametrize(
    ("mutant", "plan", "faults", "rules"),
    [
        # Its last snapshot, of before the pause, brings back turns that others ended since.
        pytest.param("no_fence", TAKEN_OVER, TAKEOVER, {"turn", "end"}, id="no_fence"),
        pytest.param("no_replay", CUT_OFF, CUTS, {"lost"}, id="no_replay", marks=pytest.mark.slow),
        pytest.param(
            "eager_commit", CUT_OFF, CUTS, {"lost"}, id="eager_commit", marks=pytest.mark.slow
        ),
        pytest.param("no_release", CAPPED, (), {"bus"}, id="no_release", marks=pytest.mark.slow),
    ],
)
async def test_mutant_worker_causes_violations(
    mutant: str,
    plan: ChaosPlan,
    faults: tuple[ScheduledFault, ...],
    rules: set[Rule],
    tmp_path: Path,
) -> None:
    reports: list[ChaosReport] = []
    while len(reports) < ROUNDS:
        module = f"tests.chaos.mutants.{mutant}"
        report = await chaos(plan, tmp_path, Progress(), module=module, faults=faults)
        if rules <= {violation.rule for violation in report.violations}:
            return
        reports.append(report)
    pytest.fail("\n".join(map(text_of, reports)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "faults"), [(CUT_OFF, CUTS), (TAKEN_OVER, TAKEOVER)], ids=["cuts", "taken_over"]
)
async def test_unmodified_worker_has_no_violations(
    plan: ChaosPlan, faults: tuple[ScheduledFault, ...], tmp_path: Path
) -> None:
    report = await chaos(plan, tmp_path, Progress(), faults=faults)
    assert report.faults
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
