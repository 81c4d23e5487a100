"""Runs a recovery benchmark, from the first process to the report."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from worker.bench.checker import Expected, Violation, violations
from worker.bench.machine import Machine, server_version, versions
from worker.bench.plan import RecoveryPlan
from worker.bench.recovery.harness import RecoveryHarness
from worker.bench.recovery.report import RecoveryReport
from worker.bench.recovery.scenarios import CUT_SCENARIOS, Measured, cut, drain, kill
from worker.bench.report import now
from worker.bench.terminal import Progress


async def recovery(plan: RecoveryPlan, progress: Progress) -> RecoveryReport:
    """Run a plan `repeat` times, each time with new processes.

    Raises TurnbusError if a process fails or an expected event does not occur.
    """
    machine = Machine.here()
    known = versions()
    values: defaultdict[str, list[float]] = defaultdict(list)
    words = torn = 0
    late_ms = 0.0
    found: list[Violation] = []
    for number in range(plan.repeat):
        which = f"run {number + 1} of {plan.repeat}: " if plan.repeat > 1 else ""
        progress.phase(f"{which}starting Redis and the STT server")
        async with RecoveryHarness.open(plan) as harness:
            known["server"] = await server_version(harness.redis)
            for phase, scenario in _scenarios(plan):
                progress.phase(which + phase)
                measured, sessions = await scenario(harness)
                for name, each in measured.items():
                    values[name] += each
                for session in sessions:
                    words += session.words
                    torn += len(session.torn)
                    expected = Expected(
                        session=session.name, words=session.words, torn=frozenset(session.torn)
                    )
                    found += violations(expected, harness.events(session))
            late_ms = max(late_ms, *harness.producer.slots_late_ms)
    return RecoveryReport(
        date=now(),
        machine=machine,
        versions=known,
        plan=plan,
        values=dict(values),
        words=words,
        torn=torn,
        producer_late_ms=late_ms,
        violations=tuple(found),
    )


def _scenarios(
    plan: RecoveryPlan,
) -> Iterator[tuple[str, Callable[[RecoveryHarness], Awaitable[Measured]]]]:
    """Yield each scenario of a plan, with the text of its progress."""
    if "kill" in plan.what:
        count = plan.kill_sessions
        yield f"killing the worker of {count} sessions inside a turn", partial(kill, plan=plan)
    if "drain" in plan.what:
        count = plan.drain_sessions
        yield f"stopping the worker of {count} sessions between turns", partial(drain, plan=plan)
    if "cut" in plan.what:
        for scenario in CUT_SCENARIOS:
            label = f"cutting {plan.trials} sockets {scenario.label}"
            yield label, partial(cut, plan=plan, scenario=scenario)
