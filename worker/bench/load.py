"""Load benchmark: starts the processes, sends audio, measures, waits for the last word.

Data flow: `plan -> producer -> (worker) -> reader of events -> word checker -> report`.
"""

import math
import os
import threading
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Final

import anyio

from schemas.turns import Event
from worker.bench.events import EventReader
from worker.bench.machine import (
    HistogramReading,
    Machine,
    Meter,
    Sample,
    WorkerLatencies,
    read_histograms,
    server_version,
    versions,
)
from worker.bench.plan import LoadPlan
from worker.bench.producer import MAX_DELAY_MS, LoadProducer, LoadSession
from worker.bench.report import LoadReport, LoadRun, now, run_of
from worker.bench.speech import Speech
from worker.bench.terminal import Progress
from worker.bench.words import WordChecker, WordResult
from worker.local.harness import SPARE_FILES, Harness, allow_open_files, provider_settings
from worker.local.process import WORKER_MODULE
from worker.local.redis import free_port

_END_TIMEOUT_S: Final = 30.0  # for the last utterances and the end of every session
_POLL_S: Final = 0.25
_SAMPLES: Final = 100  # samples of a run: enough for a slope
_FAILURES_SHOWN: Final = 5


@asynccontextmanager
async def _open_run(plan: LoadPlan, speech: Speech, module: str) -> AsyncIterator["_Run"]:
    """Start all processes; end them and remove their files when the block ends.

    Raises LocalPartMissing or BusUnavailable as `EmbeddedRedis` does, TurnbusError if a process
    does not start or stops unexpectedly.
    """
    allow_open_files(plan.sessions + SPARE_FILES)
    with open_otlp_sink() if plan.traced else nullcontext() as sink:
        async with Harness.open() as harness:
            stt_server, stt_url = await harness.start_stt_server("script", provider=plan.provider)
            admin_port = free_port()
            settings = {
                **provider_settings({plan.provider: stt_url}),
                "MAX_SESSIONS": str(plan.sessions),
                "ADMIN_ADDR": f"127.0.0.1:{admin_port}",
            }
            variables = sink.variables if sink else {}
            worker = await harness.start(
                harness.worker("worker", settings, variables=variables, module=module)
            )
            await harness.workers_ready(worker)
            pids = {
                "worker": worker.pid,
                "redis": harness.server.pid,
                "stt_server": stt_server.pid,
                "bench": os.getpid(),
            }
            metrics_port = admin_port if module == WORKER_MODULE else None
            yield _Run(plan, speech, harness, metrics_port, pids)


async def bench(
    plan: LoadPlan, repeat: int, progress: Progress, *, module: str = WORKER_MODULE
) -> LoadReport:
    """Run a plan `repeat` times, each time with new processes.

    Another `module`, as in `ChildProcess.start`, is measured as the worker, without metrics.
    Raises TurnbusError if a process fails.
    """
    machine = Machine.here()
    known = versions()
    speech = Speech(plan)
    runs = []
    for number in range(repeat):
        which = f"run {number + 1} of {repeat}: " if repeat > 1 else ""
        progress.phase(f"{which}starting Redis, the STT server and a worker")
        async with _open_run(plan, speech, module) as run:
            known["server"] = await server_version(run.redis)
            runs.append(await run.measure(machine.cores, progress, which))
    return LoadReport(date=now(), machine=machine, versions=known, plan=plan, runs=tuple(runs))


class _Run:
    """State of one run."""

    def __init__(
        self,
        plan: LoadPlan,
        speech: Speech,
        harness: Harness,
        metrics_port: int | None,
        pids: Mapping[str, int],
    ) -> None:
        keys = harness.keys
        self.redis: Final = harness.redis
        self._plan = plan
        self._speech = speech
        self._metrics_port = metrics_port  # of the worker; None for a program without metrics
        self._meter = Meter(pids)
        self._producer = LoadProducer(harness.server.port, keys, plan, speech)
        self._reader = EventReader(harness.redis, [keys.turns("0")], self._on_event)
        self._checkers: defaultdict[str, WordChecker] = defaultdict(WordChecker)
        self._appended_ms = array("q")  # of each event

    def _on_event(self, at_ms: int, event: Event) -> None:
        self._appended_ms.append(at_ms)
        self._checkers[event.session].add(event, at_ms)

    async def measure(self, cores: int, progress: Progress, which: str) -> LoadRun:
        plan, producer = self._plan, self._producer
        before = self._meter.read()
        async with anyio.create_task_group() as tasks:
            began = anyio.current_time()
            tasks.start_soon(producer.run, began)
            tasks.start_soon(self._reader.run)
            progress.phase(f"{which}starting {plan.sessions} sessions")
            await self._until(began + plan.warmup, progress)
            progress.phase(f"{which}measuring for {plan.seconds:g} s")
            first, chunks, slots = self._meter.read(), producer.chunks, len(producer.slots_late_ms)
            begun = len(producer.sessions)
            delays_before = await self._histograms()
            samples = [first, *await self._readings(began + plan.warmup, progress)]
            last, chunks = samples[-1], producer.chunks - chunks
            delays_after = await self._histograms()
            begun = len(producer.sessions) - begun
            slots_late_ms = producer.slots_late_ms[slots:]
            progress.phase(f"{which}waiting for the last words")
            with anyio.move_on_after(_END_TIMEOUT_S):
                await self._until_over()
            tasks.cancel_scope.cancel()
        return run_of(
            plan,
            before,
            samples,
            cores=cores,
            chunks=chunks,
            begun=begun,
            events=sum(first.at_ms <= at < last.at_ms for at in self._appended_ms),
            latencies=list(self._latencies(first, last)),
            delays=(
                delays_before.until(delays_after)
                if delays_before and delays_after
                else WorkerLatencies()
            ),
            slots_late_ms=slots_late_ms,
            verdict=sum(self._results(), WordResult()),
            failures=list(islice(self._failures(), _FAILURES_SHOWN)),
        )

    async def _histograms(self) -> HistogramReading | None:
        return None if self._metrics_port is None else await read_histograms(self._metrics_port)

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
        """Wait until every session has ended and the end is read."""
        for session in self._producer.sessions:
            while not (session.ended and self._checkers[session.name].ended):  # noqa: ASYNC110
                await anyio.sleep(_POLL_S)

    async def _until(self, deadline: float, progress: Progress, then: float = 0) -> None:
        """Wait until the deadline; `then` are the remaining seconds after it."""
        while (left := deadline - anyio.current_time()) > 0:
            progress.detail(f"{self._producer.live} sessions, {math.ceil(left + then)} s")
            await anyio.sleep(min(left, _POLL_S))

    def _latencies(self, first: Sample, last: Sample) -> Iterator[tuple[int, int]]:
        """Yield when each word was shown between the two samples, and its latency, in ms."""
        for session in self._producer.sessions:
            for word, at_ms in self._checkers[session.name].updated_ms.items():
                if first.at_ms <= at_ms < last.at_ms:
                    yield at_ms, at_ms - session.spoken_ms(self._speech.last_chunk(word))

    def _results(self) -> Iterator[WordResult]:
        for session in self._producer.sessions:
            sent = self._speech.words_in(session.speech_chunks)
            yield self._checkers[session.name].result(sent, self._torn(session))

    def _torn(self, session: LoadSession) -> set[int]:
        """Return the words that were interrupted because the producer was late."""
        late = session.late_chunks(self._plan.chunk_ms + MAX_DELAY_MS)
        return {word for chunk in late if (word := self._speech.word_around(chunk)) is not None}

    def _failures(self) -> Iterator[str]:
        """Yield the errors of each session that has any."""
        for session in self._producer.sessions:
            sent = self._speech.words_in(session.speech_chunks)
            if failures := self._checkers[session.name].failures(sent, self._torn(session)):
                yield f"{session.name}: {failures}"


class OtlpSink:
    """OTLP endpoint that accepts and counts every export; `open_otlp_sink` creates one."""

    def __init__(self, port: int) -> None:
        self.exports = 0
        """Number of exported batches of spans."""
        self.variables: Mapping[str, str] = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "NO_PROXY": "127.0.0.1",
        }
        """Environment variables of a process that exports its spans to this endpoint."""


@contextmanager
def open_otlp_sink() -> Iterator[OtlpSink]:
    """Listen on this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            sink.exports += 1
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above it
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        sink = OtlpSink(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield sink
        finally:
            server.shutdown()
            thread.join()
