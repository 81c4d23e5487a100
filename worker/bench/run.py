"""Runs a benchmark: starts the processes, sends audio, measures, waits for the last word."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol

import anyio

from worker.bench import latencies
from worker.bench.checker import WordResult
from worker.bench.consumer import Consumer
from worker.bench.harness import Harness
from worker.bench.machine import Machine, server_version, versions
from worker.bench.meter import Meter, Sample
from worker.bench.plan import Plan, Speech
from worker.bench.producer import LoadGenerator
from worker.bench.report import Report, Run, now, run_of

_PATIENCE_S: Final = 30.0  # timeout for the last utterances and the end of every session
_LOOK_S: Final = 0.25
_SAMPLES: Final = 100  # samples of a run: enough for a slope
_FAILURES_SHOWN: Final = 5


class Progress(Protocol):
    """Receives the progress of a benchmark."""

    def phase(self, text: str) -> None:
        """Report the phase that begins."""
        ...

    def detail(self, text: str) -> None:
        """Report the progress within the phase."""
        ...


async def bench(plan: Plan, repeat: int, progress: Progress) -> Report:
    """Run a plan `repeat` times, each time with new processes.

    Raises TurnbusError if a process fails.
    """
    machine = Machine.here()
    known = versions()
    speech = Speech(plan)
    runs = []
    for number in range(repeat):
        which = f"run {number + 1} of {repeat}: " if repeat > 1 else ""
        progress.phase(f"{which}starting Redis, the STT server and a worker")
        async with Harness.open(plan.sessions, traced=plan.traced) as rig:
            known["server"] = await server_version(rig.redis)
            runs.append(await _Run(plan, speech, rig, which).run(machine.cores, progress))
    return Report(date=now(), machine=machine, versions=known, plan=plan, runs=tuple(runs))


class _Run:
    """State of one run."""

    def __init__(self, plan: Plan, speech: Speech, rig: Harness, which: str) -> None:
        self._plan = plan
        self._speech = speech
        self._which = which
        self._meter = Meter(rig.pids)
        self._admin_port = rig.admin_port
        self._load = LoadGenerator(rig.redis, rig.redis_port, rig.keys, plan, speech)
        self._consumer = Consumer(rig.redis, rig.keys.turns("0"))

    async def run(self, cores: int, progress: Progress) -> Run:
        plan, load = self._plan, self._load
        before = self._meter.read()
        async with anyio.create_task_group() as tasks:
            began = anyio.current_time()
            tasks.start_soon(load.run, began)
            tasks.start_soon(self._consumer.run)
            progress.phase(f"{self._which}starting {plan.sessions} sessions")
            await self._until(began + plan.warmup, progress)
            progress.phase(f"{self._which}measuring for {plan.seconds:g} s")
            first, chunks, slots = self._meter.read(), load.chunks, len(load.slots_late_ms)
            begun = len(load.speakers)
            delays_before = await latencies.read(self._admin_port)
            samples = [first, *await self._readings(began + plan.warmup, progress)]
            last, chunks = samples[-1], load.chunks - chunks
            delays_after = await latencies.read(self._admin_port)
            begun = len(load.speakers) - begun
            slots_late_ms = load.slots_late_ms[slots:]
            progress.phase(f"{self._which}waiting for the last words")
            with anyio.move_on_after(_PATIENCE_S):
                await self._until_over()
            tasks.cancel_scope.cancel()
        return run_of(
            plan,
            before,
            samples,
            cores=cores,
            chunks=chunks,
            begun=begun,
            events=sum(first.at_ms <= at < last.at_ms for at in self._consumer.appended_ms),
            latencies_ms=list(self._latencies_ms(first, last)),
            delays=delays_before.until(delays_after),
            slots_late_ms=slots_late_ms,
            verdict=sum(self._verdicts(), WordResult()),
            failures=list(islice(self._failures(), _FAILURES_SHOWN)),
        )

    async def _readings(self, began: float, progress: Progress) -> list[Sample]:
        """Sample the meter evenly until the plan's time is over."""
        count = max(1, min(_SAMPLES, int(self._plan.seconds)))
        samples = []
        for number in range(1, count + 1):
            left = self._plan.seconds * (1 - number / count)
            await self._until(began + self._plan.seconds - left, progress, left)
            samples.append(self._meter.read())
        return samples

    async def _until_over(self) -> None:
        """Wait until every session has ended and the consumer has read its end."""
        tallies = self._consumer.tallies
        for speaker in self._load.speakers:
            while not (speaker.ended and tallies[speaker.session].ended):  # noqa: ASYNC110
                await anyio.sleep(_LOOK_S)

    async def _until(self, deadline: float, progress: Progress, then: float = 0) -> None:
        """Wait until the deadline; `then` are the remaining seconds after it."""
        while (left := deadline - anyio.current_time()) > 0:
            progress.detail(f"{self._load.speaking} sessions, {math.ceil(left + then)} s")
            await anyio.sleep(min(left, _LOOK_S))

    def _latencies_ms(self, first: Sample, last: Sample) -> Iterator[int]:
        """Yield the latency of each word that was shown between the two samples."""
        for speaker in self._load.speakers:
            for word, at_ms in self._consumer.tallies[speaker.session].updated_ms.items():
                if first.at_ms <= at_ms < last.at_ms:
                    yield at_ms - speaker.spoken_ms(self._speech.last_chunk(word))

    def _verdicts(self) -> Iterator[WordResult]:
        for speaker in self._load.speakers:
            tally = self._consumer.tallies[speaker.session]
            yield tally.verdict(self._speech.words_in(speaker.appended))

    def _failures(self) -> Iterator[str]:
        """Yield the errors of each session that has any."""
        for speaker in self._load.speakers:
            tally = self._consumer.tallies[speaker.session]
            if failures := tally.failures(self._speech.words_in(speaker.appended)):
                yield f"{speaker.session}: {failures}"
