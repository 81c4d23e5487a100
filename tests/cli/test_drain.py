"""`turnbus drain`: real workers, one of them drained while its sessions have audio."""

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from schemas import Keys
from schemas.turns import TurnUpdate, WorkerRecord
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.bus.inspection import list_sessions
from worker.bus.registry import read_workers
from worker.cli.main import main
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

SESSIONS = ["a", "b", "c"]
SOUND = synthesize_words([1, 2], PCM16) + synthesize_silence(700, PCM16)


async def _owners(as_worker: AsyncRedis, keys: Keys) -> set[str]:
    return {each.owner for each in await list_sessions(as_worker, keys, 5_000)}


async def _lives(as_worker: AsyncRedis, keys: Keys, worker_id: str) -> bool:
    return worker_id in await read_workers(as_worker, keys)


async def _turnbus(harness: Harness, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = await anyio.run_process(
        [sys.executable, "-m", "worker", *arguments],
        env={"TURNBUS_REDIS_URL": harness.redis_url, "TURNBUS_PREFIX": harness.prefix},
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


async def test_drained_worker_releases_sessions_and_stays_idle(
    harness: Harness, as_worker: AsyncRedis, tmp_path: Path, expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["drain:*"]
    keys, log = Keys(harness.prefix), tmp_path / "log"
    async with harness.worker_process("w1", log) as first:
        for session in SESSIONS:
            await harness.announce(session)
            await harness.append(session, audio=SOUND[: len(SOUND) // 2])
        for session in SESSIONS:
            await harness.until(session, TurnUpdate)
        assert await _owners(as_worker, keys) == {"w1"}
        async with harness.worker_process("w2", log):
            await eventually(partial(_lives, as_worker, keys, "w2"), "the second worker")
            async with anyio.create_task_group() as tasks:
                for session in SESSIONS:
                    tasks.start_soon(harness.play, session, SOUND[len(SOUND) // 2 :])
                code, lines = await _turnbus(harness, "drain", "w1", "--json")
            events = await harness.until_ended(*SESSIONS)
            assert code == 0
            assert lines[-1] == {"worker": "w1", "sessions": 0, "drained": True}
            assert first.returncode is None
            assert (await read_workers(as_worker, keys))["w1"].state == "draining"
            for each in events.values():
                check_order(each)
                assert words(each) == [1, 2]
            await harness.announce("new")

            async def went_to_the_second() -> bool:
                return await _owners(as_worker, keys) == {"w2"}

            await eventually(went_to_the_second, "the second worker to take the session")
            assert (await _turnbus(harness, "drain", "w1", "--json"))[0] == 0, "it may be repeated"
            first.send_signal(signal.SIGTERM)
            assert await first.wait() == 0
            await harness.append("new", end="1")
            await harness.until_ended("new")


def _record(bus: Redis, keys: Keys, **changed: Any) -> None:
    record = {
        "consumer": "w1-abcd",
        "host": "h",
        "pid": 1,
        "sessions": 2,
        "capacity": 9,
        "state": "ready",
        "heartbeat": 1.0,
        **changed,
    }
    encoded = msgspec.json.encode(msgspec.convert(record, WorkerRecord))
    bus.hset(keys.workers, "w1", encoded)


def test_drain_of_unknown_worker_fails(
    bus: Redis, keys: Keys, capsys: pytest.CaptureFixture[str], expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["workers"]
    assert main(["drain", "w2"]) == 1
    assert capsys.readouterr().err == "turnbus: there is no worker w2; no worker is running\n"
    _record(bus, keys)
    assert main(["drain", "w2"]) == 1
    assert capsys.readouterr().err == "turnbus: there is no worker w2; running: w1\n"


def test_drain_of_stopped_worker_fails(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    expected_leftovers: list[str],
) -> None:
    expected_leftovers += ["workers", "drain:w1-abcd"]
    _record(bus, keys)
    monkeypatch.setattr("worker.cli.operations._SILENT_S", 0.1)
    assert main(["drain", "w1"]) == 1
    out, err = capsys.readouterr()
    assert out == "w1: 2 sessions left\n"
    assert err == "turnbus: w1 sent no heartbeat for 0.1 s; other workers take over\n"
    assert 0 < int(bus.ttl(keys.drain("w1-abcd"))) <= 3_600
