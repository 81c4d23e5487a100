"""Runs a recovery benchmark, from the first process to the report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from worker.bench.checker import Expected, Violation, violations
from worker.bench.machine import Machine, server_version, versions
from worker.bench.plan import RecoveryPlan
from worker.bench.producer import RecoverySession
from worker.bench.recovery.harness import RecoveryHarness
from worker.bench.recovery.report import RecoveryReport
from worker.bench.recovery.scenarios import CUT_SCENARIOS, cut, drain, kill
from worker.bench.report import now
from worker.bench.terminal import Progress


async def recovery(plan: RecoveryPlan, progress: Progress) -> RecoveryReport:
    """Run a plan `repeat` times, each time with new processes.

    Raises TurnbusError if a process fails or an expected event does not occur.
    """
    machine = Machine.here()
    run = _Run(plan, progress)
    known = versions()
    for number in range(plan.repeat):
        which = f"run {number + 1} of {plan.repeat}: " if plan.repeat > 1 else ""
        progress.phase(f"{which}starting Redis and the STT server")
        async with RecoveryHarness.open(plan) as harness:
            known["server"] = await server_version(harness.redis)
            await run.measure(harness, which)
    return RecoveryReport(
        date=now(),
        machine=machine,
        versions=known,
        plan=plan,
        values=dict(run.values),
        words=run.words,
        torn=run.torn,
        producer_late_ms=run.producer_late_ms,
        violations=tuple(run.violations),
    )


class _Run:
    """Measurements so far."""

    def __init__(self, plan: RecoveryPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self.values: Final[defaultdict[str, list[float]]] = defaultdict(list)
        self.words = 0
        self.torn = 0
        self.violations: Final[list[Violation]] = []
        self.producer_late_ms = 0.0

    async def measure(self, harness: RecoveryHarness, which: str) -> None:
        plan, phase = self._plan, self._progress.phase
        if "kill" in plan.what:
            phase(f"{which}killing the worker of {plan.kill_sessions} sessions inside a turn")
            self._add(harness, *await kill(harness, plan))
        if "drain" in plan.what:
            phase(f"{which}stopping the worker of {plan.drain_sessions} sessions between turns")
            self._add(harness, *await drain(harness, plan))
        if "cut" in plan.what:
            for scenario in CUT_SCENARIOS:
                phase(f"{which}cutting {plan.trials} sockets {scenario.label}")
                self._add(harness, *await cut(harness, plan, scenario))
        late_ms = max(harness.producer.slots_late_ms)
        self.producer_late_ms = max(self.producer_late_ms, late_ms)

    def _add(
        self,
        harness: RecoveryHarness,
        values: Mapping[str, list[float]],
        sessions: Sequence[RecoverySession],
    ) -> None:
        """Add values; compare the events published for each session with the words sent."""
        for name, each in values.items():
            self.values[name] += each
        for session in sessions:
            self.words += session.words
            self.torn += len(session.torn)
            torn = frozenset(session.torn)
            expected = Expected(session=session.name, words=session.words, torn=torn)
            self.violations.extend(violations(expected, harness.events(session)))
