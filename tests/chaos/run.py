"""Runs a chaos test, from the first word to the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup

from schemas.turns import Event, TurnEnd, TurnStart, WorkerRecord, encode_event
from tests.chaos.checker import Expected, Violation, announced, gaps, violations
from tests.chaos.event_log import EventLog, LoggedEvent
from tests.chaos.faults import check_faults
from tests.chaos.harness import ChaosHarness, open_harness
from tests.chaos.leftovers import leftovers
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import Plan
from tests.chaos.producer import LATE_MS, ScriptedProducer
from tests.chaos.report import Report, quantile
from tests.chaos.schedule import STAGGER_S, ScheduledFault, schedule
from tests.chaos.script import ScriptedSession, scripted_sessions, spans
from tests.chaos.target import clock
from worker.errors import TurnbusError

LANES: Final = ("0", "1")
_SETTLED_S: Final = 120.0
"""Timeout for the end of a session after its producer has ended it."""

_KNOWN_S: Final = 60.0
"""Timeout for the start of workers."""

_LOOK_S: Final = 0.1


class Progress(Protocol):
    """Receives the progress of a run."""

    def phase(self, text: str) -> None:
        """Report the phase that begins."""
        ...

    def detail(self, text: str) -> None:
        """Report the progress within the phase."""
        ...


async def chaos(
    plan: Plan,
    logs: Path,
    progress: Progress,
    *,
    module: str = "worker",
    strikes: Sequence[ScheduledFault] | None = None,
) -> Report:
    """Run a plan; write logs to the directory `logs`.

    `module` replaces `worker`, and `strikes` replaces the plan's schedule. Raises TurnbusError if
    a process fails.
    """
    check_faults(plan.faults)
    if strikes is None:
        strikes = schedule(plan)
    progress.phase("starting Redis, the STT server and the workers")
    async with open_harness(plan, logs, module) as rig:
        report, history = await _Run(plan, strikes, rig, progress).run()
    keep(report, history, logs)
    return report


def keep(report: Report, history: EventLog, logs: Path) -> None:
    """Write the fault log, and the events of each session with a violation."""
    (logs / "nemesis.log").write_text("\n".join((*report.log, "")))
    for session in {violation.session for violation in report.violations} - {""}:
        lines = (
            f"{clock(logged.at_ms)} {encode_event(logged.event).decode()}\n"
            for logged in history.logged[session]
        )
        (logs / f"{session}.events").write_text("".join(lines))


class _Run:
    """State of one run."""

    def __init__(
        self, plan: Plan, strikes: Sequence[ScheduledFault], rig: ChaosHarness, progress: Progress
    ) -> None:
        self._plan = plan
        self._rig = rig
        self._progress = progress
        self._history = EventLog(rig.redis, rig.keys, LANES)
        self._nemesis = Nemesis(strikes, plan, rig)
        self._speakers: list[ScriptedProducer] = []

    async def run(self) -> tuple[Report, EventLog]:
        self._progress.phase("waiting for the workers")
        await self._workers_ready()
        self._progress.phase("sending audio and injecting faults")
        began = anyio.current_time()
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._history.run)
            reading.start_soon(self._report_progress)
            async with anyio.create_task_group() as ending:
                async with anyio.create_task_group() as breaking:
                    breaking.start_soon(self._nemesis.run)
                    await self._speak(ending)
                    self._nemesis.stop()
                self._progress.phase("waiting for the last words")
            seconds = anyio.current_time() - began
            await self._all_known()  # a worker that was just started or killed leaves traces
            await self._stop_workers()
            await anyio.sleep(1.0)  # read events that are published after an end
            reading.cancel_scope.cancel()
        return await self._report(seconds), self._history

    async def _workers_ready(self) -> None:
        if not await self._all_known():
            raise TurnbusError("\n".join(self._rig.fleet.faults) or "the workers did not start")

    async def _all_known(self) -> bool:
        """Wait until the worker records match the running processes; False after a timeout."""
        rig = self._rig
        with anyio.move_on_after(_KNOWN_S):
            while not rig.fleet.faults:
                rows: Any = await rig.health.retry(lambda: rig.redis.hvals(rig.keys.workers))
                known = {msgspec.json.decode(row, type=WorkerRecord).pid for row in rows}
                if known == {life.pid for slot in rig.fleet.slots for life in slot.lives}:
                    return True
                await anyio.sleep(_LOOK_S)
        return False

    async def _speak(self, ending: TaskGroup) -> None:
        """Send all sessions, with a maximum number at a time: each until its end is published.

        This limits the load of workers that fall behind.
        """
        room = anyio.Semaphore(self._plan.sessions)

        async def make_room(session: str) -> None:
            with anyio.move_on_after(_SETTLED_S):
                await self._history.all_ended({session})
            room.release()

        async def speak(voice: ScriptedSession) -> None:
            speaker = ScriptedProducer(self._rig.redis, self._rig.keys, voice)
            self._speakers.append(speaker)
            await speaker.run()
            ending.start_soon(make_room, voice.session)

        async with anyio.create_task_group() as speaking:
            for nth, voice in enumerate(scripted_sessions(self._plan)):
                await room.acquire()
                speaking.start_soon(speak, voice)
                if nth < self._plan.sessions:
                    await anyio.sleep(STAGGER_S)

    async def _report_progress(self) -> None:
        while True:
            self._progress.detail(
                f"{self._history.turns} of {self._plan.turns} turns, "
                f"{len(self._history.ended)} of {len(self._speakers)} sessions ended, "
                f"{self._nemesis.applied.total()} of {len(self._nemesis.schedule)} faults"
            )
            await anyio.sleep(_LOOK_S)

    async def _stop_workers(self) -> None:
        fleet = self._rig.fleet
        async with anyio.create_task_group() as tasks:
            for slot in fleet.slots:
                for life in tuple(slot.lives):
                    tasks.start_soon(fleet.stop, life)

    # -- the report

    async def _report(self, seconds: float) -> Report:
        found: list[Violation] = []
        rig, history = self._rig, self._history
        for speaker in self._speakers:
            voice = speaker.voice
            events = history.events(voice.session)
            found += violations(self._expected(speaker), events)
            if voice.out == "session" and await history.own(voice.lane, voice.session) != events:
                found.append(Violation(voice.session, "bus", "its own stream differs"))
        found += await leftovers(rig.redis, rig.keys, [each.voice for each in self._speakers])
        found += [Violation("", "bus", fault) for fault in rig.fleet.faults]
        everything = [history.events(speaker.voice.session) for speaker in self._speakers]
        dropped = [gap for events in everything for gap in gaps(events)]
        waits = sorted(self._waits_ms())
        return Report(
            plan=self._plan,
            seconds=seconds,
            schedule=self._nemesis.schedule,
            faults=dict(sorted(self._nemesis.applied.items())),
            sessions=len(self._speakers),
            turns=sum(isinstance(event, TurnEnd) for events in everything for event in events),
            words=sum(speaker.voice.words for speaker in self._speakers),
            events=sum(map(len, everything)),
            sockets=sum(events[-1].connection for events in everything if events),
            kills=len(self._nemesis.target.kills),
            next_event_ms_p50=quantile(waits, 0.5),
            next_event_ms_max=quantile(waits, 1.0),
            long_turns=sum(
                turn.seconds > self._plan.max_lag_s > 0
                for speaker in self._speakers
                for turn in speaker.voice.turns
            ),
            outages_in_turns=sum(self._outages_in_turns()),
            gaps=len(dropped),
            gap_s=sum(gap.end - gap.begin for gap in dropped) / 1_000,
            announced=sum(
                len(announced(self._expected(speaker), history.events(speaker.voice.session)))
                for speaker in self._speakers
            ),
            excused=sum(len(self._expected(speaker).torn) for speaker in self._speakers),
            violations=tuple(found),
            log=tuple(self._nemesis.target.log),
        )

    def _expected(self, speaker: ScriptedProducer) -> Expected:
        """Return the expected words; a pause counts as the producer's only while Redis was up."""
        late = frozenset(
            torn.word
            for torn in speaker.torn
            if longest_up_ms(torn.from_ms, torn.to_ms, self._nemesis.target.outages_ms)
            > speaker.voice.chunk_ms + LATE_MS
        )
        return Expected(
            session=speaker.voice.session,
            words=speaker.voice.words,
            torn=late,
            spans=spans(speaker.voice),
            chunks=tuple(speaker.appended),
            max_lag_s=self._plan.max_lag_s,
            style=self._plan.style,
        )

    def _outages_in_turns(self) -> Iterator[int]:
        """Yield the number of sessions inside a turn at the start of each long outage."""
        for began_ms, over_ms in self._nemesis.target.stt_outages_ms:
            if over_ms - began_ms > self._plan.max_lag_s * 1_000 > 0:
                before = (_split(logged, began_ms)[0] for logged in self._history.logged.values())
                yield sum(_inside_turn([each.event for each in logged]) for logged in before)

    def _waits_ms(self) -> Iterator[int]:
        """Yield the time from each kill to the next event of each session inside a turn."""
        for kill in self._nemesis.target.kills:
            for session in kill.sessions:
                before, after = _split(self._history.logged[session], kill.at_ms)
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
