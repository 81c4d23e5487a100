"""One comparison: the worker's bench, then each client under the same load, one after another."""

import os
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import msgspec

from tests.peers.environment import PUBLISHED, NotInstalled, PublishedClient
from tests.peers.process import Done, Mark, Outcome, PeerFailed, PeerProcess
from tests.peers.report import ClientRow, ComparisonReport, Cost
from worker.bench.load import bench
from worker.bench.machine import Machine, Meter, Sample, versions
from worker.bench.plan import SLOT_MS, LoadPlan
from worker.bench.report import now
from worker.bench.speech import Speech, starts
from worker.bench.terminal import Progress
from worker.bench.words import WordResult, compare
from worker.local.emulator.engines.script import words_of
from worker.local.harness import SPARE_FILES, allow_open_files, open_stt_server

TURNBUS: Final = "turnbus"


async def compare_peers(plan: LoadPlan, repeat: int, progress: Progress) -> ComparisonReport:
    """Run the plan `repeat` times with the worker and each client.

    A client that cannot be installed or fails has a row with the error. Raises TurnbusError if
    the bench of the worker cannot run.
    """
    machine = Machine.here()
    failures: dict[str, str] = {}
    for peer in PUBLISHED:
        try:
            await _install(peer, progress)
        except NotInstalled as error:
            failures[peer.name] = f"not installed: {error}"
    known = versions()
    own = f"{TURNBUS} {known[TURNBUS]}"
    costs: dict[str, list[Cost]] = {name: [] for name in (own, *(p.name for p in PUBLISHED))}
    redis_us = []
    speech = Speech(plan)
    for number in range(repeat):
        which = f"run {number + 1} of {repeat}: " if repeat > 1 else ""
        progress.phase(f"{which}{own}")
        (run,) = (await bench(plan, 1, progress)).runs
        costs[own].append(
            Cost(
                cpu_us_per_chunk=run.cpu_us_per_chunk["worker"],
                cpu_share=run.cpu_share["worker"],
                kib_per_session=run.kib_per_session,
                mib=run.worker_rss[-1] / 2**20,
                slots_late=run.slots_late,
                others_busy=run.others_busy,
                verdict=run.verdict,
            )
        )
        redis_us.append(run.cpu_us_per_chunk["redis"])
        for peer in PUBLISHED:
            if peer.name in failures:
                continue
            progress.phase(f"{which}{peer.name}")
            try:
                costs[peer.name].append(
                    await ClientRun(plan, speech, machine.cores).run(
                        peer.environment.python, peer.program
                    )
                )
            except PeerFailed as error:
                failures[peer.name] = f"failed: {error}"
    return ComparisonReport(
        date=now(),
        machine=machine,
        versions=known,
        plan=plan,
        redis_us_per_chunk=tuple(redis_us),
        rows=tuple(
            ClientRow(name=name, costs=tuple(each), failure=failures.get(name, ""))
            for name, each in costs.items()
        ),
    )


async def _install(peer: PublishedClient, progress: Progress) -> None:
    """Install a client unless it is installed."""
    environment = peer.environment
    if not environment.installed:
        progress.phase(f"installing {peer.requirement} into {environment.home}")
        await environment.install()


class ClientRun:
    """A run of one client."""

    def __init__(self, plan: LoadPlan, speech: Speech, cores: int) -> None:
        self._plan = plan
        self._speech = speech
        self._cores = cores

    async def run(self, python: Path, program: Path) -> Cost:
        """Run the client that a program drives, with this Python.

        Raises PeerFailed if it fails, TurnbusError if the STT server does.
        """
        allow_open_files(self._plan.sessions + SPARE_FILES)
        with tempfile.TemporaryDirectory(prefix="turnbus-peers-") as path:
            directory = Path(path)
            async with open_stt_server(directory, "script") as (server, url):
                spec = self._write_spec(directory, url)
                log = directory / "client.log"
                try:
                    async with PeerProcess.start(python, program, spec, log) as process:
                        return await self._measure(
                            process,
                            {"client": process.pid, "stt_server": server.pid, "bench": os.getpid()},
                        )
                except PeerFailed as error:
                    failed = error  # raised where no task group wraps it
        raise failed

    async def _measure(self, process: PeerProcess, pids: dict[str, int]) -> Cost:
        plan = self._plan
        await process.answer(Done)
        meter = Meter(pids)
        before = meter.read()
        await process.ask("open", Done)
        await process.ask("load", Done)
        await anyio.sleep(plan.warmup)
        chunks_before = (await process.ask("mark", Mark)).chunks
        first = meter.read()
        await anyio.sleep(plan.seconds)
        chunks = (await process.ask("mark", Mark)).chunks - chunks_before
        last = meter.read()
        outcome = await process.answer(Outcome)
        if outcome.failures:
            raise PeerFailed("; ".join(outcome.failures))
        return self._cost(before, first, last, chunks, outcome)

    def _cost(
        self, before: Sample, first: Sample, last: Sample, chunks: int, outcome: Outcome
    ) -> Cost:
        used = last.since(first)
        grown = last.rss["client"] - before.rss["client"]
        return Cost(
            cpu_us_per_chunk=used.cpu_s["client"] * 1e6 / max(1, chunks),
            cpu_share=used.shares["client"],
            kib_per_session=grown / 1024 / self._plan.sessions,
            mib=last.rss["client"] / 2**20,
            slots_late=outcome.late,
            others_busy=used.others_s / used.seconds / self._cores,
            verdict=verdict_of(outcome, self._speech),
        )

    def _write_spec(self, directory: Path, url: str) -> Path:
        """Write the input of the client's program; see `clients/peer.py`."""
        plan = self._plan
        audio, spec = directory / "audio", directory / "spec.json"
        audio.write_bytes(b"".join(self._speech.chunks))
        given = {
            "url": url,
            "base_url": f"http://{urlsplit(url).netloc}",
            "sample_rate": plan.sample_rate,
            "chunk_ms": plan.chunk_ms,
            "chunk_bytes": len(self._speech.silence),
            "slot_ms": SLOT_MS,
            "last_slot": plan.last_slot,
            "cycle": plan.cycle,
            "starts": [[start.slot, start.silent_chunks] for start in starts(plan)],
            "audio": str(audio),
        }
        spec.write_bytes(msgspec.json.encode(given))
        return spec


def verdict_of(outcome: Outcome, speech: Speech) -> WordResult:
    """Compare the words that a client received with the words sent."""
    verdict = WordResult(unended=outcome.missing)
    for session in outcome.sessions:
        sent = speech.words_in(session.spoken)
        received = [word for turn in session.turns for word in words_of(turn)]
        verdict += compare(sent, received).result(sent)
    return verdict
