"""Runs a chaos test, from the first word to the report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from schemas.turns import Event, TurnEnd, TurnStart, WorkerRecord, encode_event
from tests.chaos.faults import (
    STAGGER_S,
    FaultInjector,
    ScheduledFault,
    check_faults,
    schedule,
)
from tests.chaos.harness import ChaosHarness, clock, open_harness
from tests.chaos.leftovers import leftovers
from tests.chaos.moves import provider_moves, wrong_providers
from tests.chaos.plan import ChaosPlan
from tests.chaos.producer import ScriptedProducer
from tests.chaos.report import ChaosReport
from tests.chaos.script import ScriptedSession, scripted_sessions, spans
from tests.chaos.signals import signal_violations
from worker.bench.checker import Expected, Violation, gaps, violations, words_in_gaps
from worker.bench.events import EventLog, LoggedEvent
from worker.bench.producer import MAX_DELAY_MS
from worker.bench.report import quantiles
from worker.bench.terminal import Progress
from worker.errors import TurnbusError

LANES: Final = ("0", "1")
_END_TIMEOUT_S: Final = 120.0
"""Timeout for the end of a session after its producer has ended it."""

_START_TIMEOUT_S: Final = 60.0
"""Timeout for the start of workers."""

_POLL_S: Final = 0.1


async def chaos(
    plan: ChaosPlan,
    logs: Path,
    progress: Progress,
    *,
    module: str = "worker",
    faults: Sequence[ScheduledFault] | None = None,
) -> ChaosReport:
    """Run a plan; write logs to the directory `logs`.

    `module` replaces `worker`, and `faults` replaces the plan's schedule. Raises TurnbusError if
    a process fails.
    """
    check_faults(plan.faults)
    if faults is None:
        faults = schedule(plan)
    progress.phase("starting Redis, the STT server and the workers")
    async with open_harness(plan, logs, module) as harness:
        report, event_log = await _Run(plan, faults, harness, progress).run()
    _keep(report, event_log, logs)
    return report


def _keep(report: ChaosReport, event_log: EventLog, logs: Path) -> None:
    """Write the fault log, and the events of each session with a violation."""
    (logs / "faults.log").write_text("\n".join((*report.log, "")))
    for session in {violation.session for violation in report.violations} - {""}:
        lines = (
            f"{clock(logged.at_ms)} {encode_event(logged.event).decode()}\n"
            for logged in event_log.logged[session]
        )
        (logs / f"{session}.events").write_text("".join(lines))


class _Run:
    """State of one run."""

    def __init__(
        self,
        plan: ChaosPlan,
        faults: Sequence[ScheduledFault],
        harness: ChaosHarness,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._harness = harness
        self._progress = progress
        self._event_log = EventLog(harness.redis, harness.keys, LANES)
        self._injector = FaultInjector(faults, harness)
        self._producers: list[ScriptedProducer] = []

    async def run(self) -> tuple[ChaosReport, EventLog]:
        self._progress.phase("waiting for the workers")
        if not await self._records_match():
            raise TurnbusError("\n".join(self._harness.fleet.faults) or "the workers did not start")
        self._progress.phase("sending audio and injecting faults")
        began = anyio.current_time()
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._event_log.run)
            reading.start_soon(self._report_progress)
            async with anyio.create_task_group() as ending:
                async with anyio.create_task_group() as injecting:
                    injecting.start_soon(self._injector.run)
                    await self._send_all(ending)
                    self._injector.stop()
                self._progress.phase("waiting for the last words")
            seconds = anyio.current_time() - began
            await self._records_match()  # a worker that was just started or killed leaves traces
            await self._harness.fleet.stop_all()
            await anyio.sleep(1.0)  # read events that are published after an end
            reading.cancel_scope.cancel()
        return await self._report(seconds), self._event_log

    async def _records_match(self) -> bool:
        """Wait until the worker records match the running processes; False after a timeout."""
        harness = self._harness
        with anyio.move_on_after(_START_TIMEOUT_S):
            while not harness.fleet.faults:
                rows: Any = await harness.retry(lambda: harness.redis.hvals(harness.keys.workers))
                recorded = {msgspec.json.decode(row, type=WorkerRecord).pid for row in rows}
                if recorded == harness.fleet.pids:
                    return True
                await anyio.sleep(_POLL_S)
        return False

    async def _send_all(self, ending: TaskGroup) -> None:
        """Send all sessions, with a maximum number at a time: each until its end is published.

        This limits the load of workers that fall behind.
        """
        room = anyio.Semaphore(self._plan.sessions)

        async def release_room(session: str) -> None:
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self._event_log.all_ended({session})
            room.release()

        async def send(script: ScriptedSession) -> None:
            producer = ScriptedProducer(self._harness.redis, self._harness.keys, script)
            self._producers.append(producer)
            await producer.run()
            ending.start_soon(release_room, script.name)

        async with anyio.create_task_group() as sending:
            for nth, script in enumerate(scripted_sessions(self._plan)):
                await room.acquire()
                sending.start_soon(send, script)
                if nth < self._plan.sessions:
                    await anyio.sleep(STAGGER_S)

    async def _report_progress(self) -> None:
        while True:
            self._progress.detail(
                f"{self._event_log.turns} of {self._plan.turns} turns, "
                f"{len(self._event_log.ended)} of {len(self._producers)} sessions ended, "
                f"{self._injector.applied.total()} of {len(self._injector.schedule)} faults"
            )
            await anyio.sleep(_POLL_S)

    async def _report(self, seconds: float) -> ChaosReport:
        harness, event_log, plan = self._harness, self._event_log, self._plan
        scripts = [producer.script for producer in self._producers]
        expected = [self._expected(producer) for producer in self._producers]
        published = [event_log.events(script.name) for script in scripts]
        signals = {producer.script.name: producer.signals for producer in self._producers}
        found: list[Violation] = []
        for script, sent, events in zip(scripts, expected, published, strict=True):
            found += violations(sent, events)
            found += signal_violations(signals[script.name], sent, events)
            found += wrong_providers(script, events)
            if script.out == "session" and await event_log.own(script.lane, script.name) != events:
                found.append(Violation(script.name, "bus", "its own stream differs"))
        found += await leftovers(harness.redis, harness.keys, scripts)
        found += [Violation("", "bus", fault) for fault in harness.fleet.faults]
        dropped = [gap for events in published for gap in gaps(events)]
        turns = [turn for script in scripts for turn in script.turns]
        moves = [move for events in published for move in provider_moves(events)]
        waits = quantiles(list(self._waits_ms()))
        return ChaosReport(
            plan=plan,
            seconds=seconds,
            schedule=self._injector.schedule,
            faults=dict(sorted(self._injector.applied.items())),
            sessions=len(scripts),
            turns=sum(isinstance(event, TurnEnd) for events in published for event in events),
            words=sum(script.words for script in scripts),
            events=sum(map(len, published)),
            sockets=sum(events[-1].connection for events in published if events),
            moves=dict(sorted(Counter(move.label for move in moves).items())),
            kills=len(self._harness.kills),
            next_event_ms_p50=round(waits.p50) if waits.count else None,
            next_event_ms_max=round(waits.max) if waits.count else None,
            long_turns=sum(turn.seconds > plan.max_lag_s > 0 for turn in turns),
            outages_in_turns=sum(self._outages_in_turns()),
            gaps=len(dropped),
            gap_s=sum(gap.end - gap.begin for gap in dropped) / 1_000,
            announced=sum(map(len, map(words_in_gaps, expected, published))),
            excused=sum(len(sent.torn) for sent in expected),
            violations=tuple(found),
            log=tuple(self._harness.log),
        )

    def _expected(self, producer: ScriptedProducer) -> Expected:
        """Return the expected words; a pause counts as the producer's only while Redis was up."""
        late = frozenset(
            torn.word
            for torn in producer.torn
            if longest_up_ms(torn.from_ms, torn.to_ms, self._harness.outages_ms)
            > producer.script.chunk_ms + MAX_DELAY_MS
        )
        return Expected(
            session=producer.script.name,
            words=producer.script.words,
            torn=late,
            spans=spans(producer.script),
            chunks=tuple(producer.appended),
            max_lag_s=self._plan.max_lag_s,
            style=self._plan.style,
        )

    def _outages_in_turns(self) -> Iterator[int]:
        """Yield the number of sessions inside a turn at the start of each long outage."""
        for began_ms, over_ms in self._harness.stt_outages_ms:
            if over_ms - began_ms > self._plan.max_lag_s * 1_000 > 0:
                before = (_split(logged, began_ms)[0] for logged in self._event_log.logged.values())
                yield sum(_inside_turn([each.event for each in logged]) for logged in before)

    def _waits_ms(self) -> Iterator[int]:
        """Yield the time from each kill to the next event of each session inside a turn."""
        for kill in self._harness.kills:
            for session in kill.sessions:
                before, after = _split(self._event_log.logged[session], kill.at_ms)
                if after and _inside_turn([logged.event for logged in before]):
                    yield after[0].at_ms - kill.at_ms


def longest_up_ms(from_ms: int, to_ms: int, outages_ms: Sequence[tuple[int, int]]) -> int:
    """Return the longest time between outages within this range.

    The time before an outage counts, too: a full Redis rejects audio but answers reads.
    """
    longest, up_ms = 0, from_ms
    for down, back in sorted(outages_ms):
        if back > from_ms and down < to_ms:
            longest = max(longest, down - up_ms)
            up_ms = max(up_ms, back)
    return max(longest, to_ms - up_ms)


def _split(
    logged: Sequence[LoggedEvent], at_ms: int
) -> tuple[list[LoggedEvent], list[LoggedEvent]]:
    before = [each for each in logged if each.at_ms <= at_ms]
    return before, list(logged[len(before) :])


def _inside_turn(events: Sequence[Event]) -> bool:
    for event in reversed(events):
        if isinstance(event, TurnEnd):
            return False
        if isinstance(event, TurnStart):
            return True
    return False
