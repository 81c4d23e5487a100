"""Runs a recovery benchmark, from the first process to the report."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from tests.chaos.checker import Expected, Violation, violations
from worker.bench.machine import Machine, server_version, versions
from worker.bench.recovery.cut import SCENES, cut
from worker.bench.recovery.drain import drain
from worker.bench.recovery.harness import RecoveryHarness
from worker.bench.recovery.kill import kill
from worker.bench.recovery.plan import RecoveryPlan
from worker.bench.recovery.producer import ProducerSession
from worker.bench.recovery.report import RecoveryReport
from worker.bench.report import now
from worker.bench.run import Progress


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
        async with RecoveryHarness.open(plan) as rig:
            known["server"] = await server_version(rig.redis)
            await run.measure(rig, which)
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

    async def measure(self, rig: RecoveryHarness, which: str) -> None:
        plan = self._plan
        if "kill" in plan.what:
            sessions = f"{plan.kill_sessions} sessions"
            self._progress.phase(f"{which}killing the worker of {sessions} inside a turn")
            killed, lines = await kill(rig, plan, "kill")
            self.values["kill_connected"] += killed.connected_ms
            self.values["kill_audio"] += killed.audio_ms
            self._check(rig, lines)
        if "drain" in plan.what:
            sessions = f"{plan.drain_sessions} sessions"
            self._progress.phase(f"{which}stopping the worker of {sessions} between turns")
            drained, lines = await drain(rig, plan, "drain")
            self.values["drain_exit"].append(drained.exit_ms)
            self.values["drain_owned"].append(drained.owned_ms)
            self.values["drain_connected"].append(drained.connected_ms)
            self._check(rig, lines)
        if "cut" in plan.what:
            for scene in SCENES:
                self._progress.phase(f"{which}cutting {plan.trials} sockets {scene.label}")
                made, lines = await cut(rig, plan, scene, scene.name.replace("_", "-"))
                self.values[scene.name] += made.later_ms
                self.values["uncut"] += made.uncut_ms
                self._check(rig, lines)
        self.producer_late_ms = max(self.producer_late_ms, rig.producer.latest_ms)

    def _check(self, rig: RecoveryHarness, lines: Sequence[ProducerSession]) -> None:
        """Compare the events published for each session with the words sent."""
        for line in lines:
            self.words += line.words
            self.torn += len(line.torn)
            expected = Expected(session=line.session, words=line.words, torn=frozenset(line.torn))
            self.violations.extend(violations(expected, rig.events(line)))
