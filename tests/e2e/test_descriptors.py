"""A worker with few file descriptors serves as many sessions as it can and logs the number."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import anyio
import msgspec
import psutil
import pytest
from anyio.abc import Process

from schemas.keys import Keys
from schemas.turns import SessionStarted, WorkerRecord
from tests.support.harness import KEY, PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker import descriptors, network
from worker.admin import Readiness
from worker.cli.check import _check_files
from worker.descriptors import LEAST_DESCRIPTORS, OTHER_DESCRIPTORS, capacity, needed, shortfall
from worker.errors import SttShortageError
from worker.local.emulator.engines.script import synthesize_words
from worker.local.redis import free_port
from worker.network import connect_tcp
from worker.settings import Settings
from worker.shortage import TRIAL_S, Shortage

RESERVED = OTHER_DESCRIPTORS + 32


@pytest.mark.parametrize(
    ("url", "limit", "fits"),
    [
        ("redis://a", 10_000, 500),
        ("redis://a", 596, 500),
        ("redis://a", 595, 499),
        ("redis://a", RESERVED + 1, 1),
        ("redis://a", RESERVED, 0),
        ("redis://a", 0, 0),
        ("redis+sentinel://a,b,c/s", 596, 500),
        ("redis+cluster://a,b,c", 596, 436),
        ("redis://a", descriptors.UNLIMITED, 500),
    ],
)
def test_capacity_follows_from_the_limit(url: str, limit: int, fits: int) -> None:
    settings = Settings(redis_url=url)
    assert capacity(settings, limit) == fits
    text = shortfall(settings, limit)
    if fits == 500:
        assert text is None
        return
    assert text is not None
    assert text.startswith(f"at most {limit} files may be open ")
    assert f"TURNBUS_MAX_SESSIONS=500 needs {needed(settings)}: there is room for {fits} " in text


@pytest.mark.parametrize(
    ("hard", "result"), [(40, "fail"), (200, "warn"), (596, "ok"), (descriptors.UNLIMITED, "ok")]
)
async def test_check_compares_capacity_with_the_limit(
    monkeypatch: pytest.MonkeyPatch, hard: int, result: str
) -> None:
    monkeypatch.setattr(descriptors, "limits", lambda: (40, hard))
    findings: list[Any] = []
    await _check_files(Settings(), findings.append)
    (finding,) = findings
    assert (finding.check, finding.result) == ("files", result)
    assert "596" in finding.detail
    allowed = "any number" if hard == descriptors.UNLIMITED else str(hard)
    assert allowed in finding.detail


def _limited(soft: int, hard: int) -> list[str]:
    """Return a command that runs another command under limits of open files."""
    script = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    return ["/bin/sh", "-c", script, "limited"]


def test_run_rejects_a_limit_too_small_for_a_worker() -> None:
    few = LEAST_DESCRIPTORS - 1
    env = {**os.environ, "CARTESIA_API_KEY": KEY, "TURNBUS_ADMIN_ADDR": ""}
    done = subprocess.run(
        [*_limited(few, few), sys.executable, "-m", "worker", "run"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"turnbus: at most {few} files may be open and a worker needs 32 ")


@pytest.mark.parametrize("limit", [6, 8, 11, 14])
@pytest.mark.parametrize("command", ["sessions", "check"])
def test_command_without_descriptors_reports_the_shortage(command: str, limit: int) -> None:
    done = subprocess.run(
        [*_limited(limit, limit), sys.executable, "-m", "worker", command],
        env={**os.environ, "CARTESIA_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnbus: ")
    assert "Too many open files" in line
    assert "ulimit -n" in line


class Few:
    """Sets the limit of open files of a worker process."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log
        self.pid = process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def limit(self, soft: int | None = None) -> int:
        """Set the soft limit, if one is given, and return the previous one."""
        process = psutil.Process(self.pid)
        before, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        if soft is not None:
            process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        return int(before)

    def open_files(self) -> int:
        return int(psutil.Process(self.pid).num_fds())

    async def readiness(self) -> Readiness | None:
        def ask() -> Readiness | None:
            health = HTTPConnection("127.0.0.1", self._port, timeout=10)
            try:
                health.request("GET", "/readyz")
                return msgspec.json.decode(health.getresponse().read(), type=Readiness)
            except OSError:
                return None
            finally:
                health.close()

        return await anyio.to_thread.run_sync(ask)

    async def ready(self) -> bool:
        found = await self.readiness()
        return found is not None and found.ready

    async def short(self) -> str | None:
        found = await self.readiness()
        reasons = found.reasons if found else ()
        return next((reason for reason in reasons if reason.startswith("shortage: ")), None)


@asynccontextmanager
async def few_files(
    harness: Harness, tmp_path: Path, soft: int, hard: int, **changed: str
) -> AsyncIterator[Few]:
    port, log = free_port(), tmp_path / "few"
    under, address = _limited(soft, hard), f"127.0.0.1:{port}"
    async with harness.worker_process(
        "few", log, under=under, admin_addr=address, **changed
    ) as run:
        yield Few(run, port, log)


async def _record(harness: Harness, worker_id: str) -> WorkerRecord | None:
    raw: Any = await harness.redis.hget(Keys(harness.prefix).workers, worker_id)
    return msgspec.json.decode(raw, type=WorkerRecord) if raw else None


async def test_run_raises_the_soft_limit(harness: Harness, tmp_path: Path) -> None:
    async with few_files(harness, tmp_path, 40, 5_000, max_sessions="7") as few:
        await eventually(few.ready, "a worker that is ready")
        assert few.limit() == RESERVED + 7
        assert "files may be open" not in few.log


async def test_worker_takes_as_many_sessions_as_it_can_serve(
    harness: Harness, tmp_path: Path
) -> None:
    names = [f"call-{number}" for number in range(5)]
    most = RESERVED + 2
    async with few_files(harness, tmp_path, 40, most) as few:
        await eventually(few.ready, "a worker that is ready")
        for name in names:
            await harness.announce(name)
            await harness.play(name, synthesize_words([1], PCM16), pause_s=0, end=False)

        async def full() -> bool:
            record = await _record(harness, "few")
            return record is not None and (record.sessions, record.capacity) == (2, 2)

        await eventually(full, "a worker with two sessions")
        assert f"at most {most} files may be open and TURNBUS_MAX_SESSIONS=500 needs 596" in few.log
        async with harness.worker(worker_id="other"):
            for name in names:
                await harness.append(name, end="1")
            events = await harness.until_ended(*names)
    for name in names:
        check_order(events[name])
        assert words(events[name]) == [1]


async def test_worker_without_descriptors_is_unready(harness: Harness, tmp_path: Path) -> None:
    async with few_files(harness, tmp_path, 40, RESERVED) as few:
        text = await eventually(few.short, "a worker that is short")
        assert text is not None
        assert text.startswith(f"shortage: at most {RESERVED} files may be open and TURNBUS_MAX_")
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16))
        async with harness.worker(worker_id="other"):
            events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1]
    assert isinstance(events[0], SessionStarted)
    assert events[0].worker == "other"


async def test_worker_releases_a_session_it_cannot_connect(
    harness: Harness, tmp_path: Path
) -> None:
    """The limit falls while a session waits for its first audio, and rises again."""
    async with few_files(harness, tmp_path, 40, 5_000, max_sessions="7") as few:
        await eventually(few.ready, "a worker that is ready")
        await harness.announce("call-1")

        async def owned() -> bool:
            record = await _record(harness, "few")
            return record is not None and record.sessions == 1

        await eventually(owned, "a session that is owned")
        enough = few.limit(few.open_files() + 8)
        await harness.play("call-1", synthesize_words([1], PCM16), end=False)
        await eventually(lambda: "call-1: released" in few.log, "a session that was released")
        said = await eventually(few.short, "a worker that is short")
        assert said is not None
        assert "this machine cannot open a socket (Too many open files, at most " in said
        async with harness.worker(worker_id="other") as other:
            await eventually(lambda: len(other.running), "a session taken by the other worker")
            await harness.play("call-1", synthesize_words([2], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
        check_order(events)
        assert words(events) == [1, 2]
        few.limit(enough)
        await eventually(few.ready, "a worker that is ready again")
        for name in ("call-2", "call-3"):
            await harness.announce(name)
            await harness.play(name, synthesize_words([3], PCM16))
        await harness.until_ended("call-2", "call-3")
        assert few.log.count("this machine cannot open a socket") == 1
        assert few.log.count("sockets can be opened again after") == 1


# -- shortages of each kind


@pytest.mark.parametrize("number", sorted(network.SHORTAGE_ERRNOS))
async def test_shortage_is_not_counted_as_a_provider_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    connect = aiohappyeyeballs.start_connection
    lacking = True

    async def start_connection(*args: Any, **options: Any) -> socket.socket:
        if lacking:
            raise OSError(number, os.strerror(number))
        return await connect(*args, **options)

    async with harness.worker() as worker:
        await harness.announce("call-1")
        await eventually(lambda: len(worker.running), "a session that is owned")
        with monkeypatch.context() as patch:
            patch.setattr(network, "start_connection", start_connection)
            await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
            await eventually(lambda: worker.context.shortage.reason, "a worker that is short")
            assert any(reason.startswith("shortage: ") for reason in worker.readiness.reasons)
            await eventually(lambda: not len(worker.running), "a session that was released")
            lacking = False
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.readiness.ready
        assert worker.context.stats.connects["shortage"]
    check_order(events)
    assert words(events) == [1]


def test_after_a_shortage_one_session_is_tried_first() -> None:
    shortage = Shortage()
    assert shortage.room(9, 0.0) == 9
    shortage.record(SttShortageError("no descriptor"), 0.0)
    assert shortage.reason == "no descriptor"
    shortage.look(0.5)
    assert shortage.reason
    shortage.look(100.0)
    assert not shortage.reason
    assert [shortage.room(9, now) for now in (100.0, 101.0, 101.0 + TRIAL_S)] == [1, 0, 1]
    shortage.connected(112.0)
    assert shortage.room(9, 112.0) == 9


async def test_dns_lookup_without_a_thread_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", submit)
    with pytest.raises(OSError, match="no thread to look up localhost") as lacking:
        await connect_tcp("localhost", 1, 30)
    assert lacking.value.errno == errno.EAGAIN


LOOKUP = """
import anyio, os, resource
from worker.network import connect_tcp

async def main():
    free = os.dup(0)
    os.close(free)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        await connect_tcp("turnbus.invalid", 1, 30)
    except OSError as error:
        print(error.errno)

anyio.run(main)
"""


def test_dns_lookup_without_a_descriptor_is_a_shortage() -> None:
    """The resolver reports that the name is unknown."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKUP], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EMFILE)
