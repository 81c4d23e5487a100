"""Cleanup of what no session removes: consumers of dead workers, and audio never announced."""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import GROUP, Keys
from tests.redis.contracts import contract_of
from tests.support.polling import eventually
from worker.bus import cleanup as sweeper_module
from worker.bus import lost_entries as lost_module
from worker.bus import scripts
from worker.bus.cleanup import Cleaner
from worker.bus.ownership import SessionLeases


class Bus:
    """A bus with two workers that clean it up."""

    def __init__(self, redis: Redis, as_worker: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self.as_worker = as_worker
        self.intake = SessionLeases(as_worker, keys, "one", "nonce-1")
        self.sweeper = Cleaner(as_worker, keys, self.intake)
        self.other = Cleaner(as_worker, keys, SessionLeases(as_worker, keys, "two", "nonce-2"))

    async def append(self, session: str, lane: str = "0", entry: str = "*") -> None:
        await self.redis.xadd(self.keys.audio(lane, session), {"audio": b"x"}, id=entry)

    async def left(self) -> set[str]:
        found = self.redis.scan_iter(f"{self.keys.prefix}:*:audio:*")
        return {key.decode().rpartition(":")[2] async for key in found}


@pytest.fixture
async def bus(
    redis: Redis, as_worker: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> Bus:
    expected_leftovers += ["sessions", "sweep", "{*}:audio:*", "{*}:state:*"]
    bus = Bus(redis, as_worker, Keys(bus_prefix))
    await bus.intake.ensure_group()
    return bus


@contract_of(scripts.remove_audio)
async def test_unannounced_audio_is_deleted_when_old(bus: Bus) -> None:
    old = "1600000000000-0"
    for session, lane in (("lost", "0"), ("lost-too", "eu"), ("state", "0"), ("entry", "eu")):
        await bus.append(session, lane, old)
    await bus.append("young", entry=old)
    await bus.append("young")
    await bus.redis.set(bus.keys.audio("0", "ended"), "ended")
    await bus.redis.hset(bus.keys.state("0", "state"), "status", "live")
    announced: Any = {"session": "entry", "lane": "eu", "encoding": "x"}
    await bus.redis.xadd(bus.keys.sessions, announced)
    other_lane: Any = {"session": "lost-too", "encoding": "x"}
    await bus.redis.xadd(bus.keys.sessions, other_lane)
    assert await bus.sweeper.sweep_audio(3_600) == 2
    assert await bus.left() == {"state", "entry", "young", "ended"}


async def test_one_worker_cleans_up_at_a_time(bus: Bus) -> None:
    assert await bus.sweeper.begin(3_600)
    assert not await bus.other.begin(3_600)
    assert await bus.redis.ttl(bus.keys.sweep) > 3_000
    await bus.redis.delete(bus.keys.sweep)
    assert await bus.other.begin(3_600)


async def test_live_session_without_entry_is_announced_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("CONSUMER_INTERVAL_S", 0.02), ("AUDIO_INTERVAL_S", 0.1)):
        monkeypatch.setattr(sweeper_module, name, seconds)
    monkeypatch.setattr(lost_module, "OWNER_GRACE_S", 0.0)
    state: Any = {"status": "live", "entry": "1-1", "run": "1-1", "fields": '{"session":"call-1"}'}
    await bus.redis.hset(bus.keys.state("0", "call-1"), mapping=state)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bus.sweeper.run)
        await eventually(lambda: bus.redis.xlen(bus.keys.sessions), "the session")
        tasks.cancel_scope.cancel()
    rows: Any = await bus.redis.xrange(bus.keys.sessions)
    ((_, fields),) = rows
    assert fields == {b"session": b"call-1", b"run": b"1-1"}


async def test_cleanup_with_many_session_entries(bus: Bus) -> None:
    async with bus.redis.pipeline(transaction=False) as pipe:
        for number in range(2_500):
            pipe.xadd(bus.keys.sessions, {"session": f"call-{number}"})
        await pipe.execute()
    for session in ("call-0", "call-1000", "call-2499", "call-2500"):
        await bus.append(session, entry="1600000000000-0")
    assert await bus.sweeper.sweep_audio(3_600) == 1
    assert await bus.left() == {"call-0", "call-1000", "call-2499"}


async def test_consumers_of_dead_workers_are_deleted(bus: Bus) -> None:
    """A worker killed while it owned nothing has no record, and no other worker saw it."""
    await bus.redis.xadd(bus.keys.sessions, {"session": "call-1"})
    owner = SessionLeases(bus.as_worker, bus.keys, "owner", "nonce-3")
    assert len(await owner.read_new(1, 10)) == 1
    for name in ("dead", "one"):
        await bus.redis.xgroup_createconsumer(bus.keys.sessions, GROUP, name)
    await anyio.sleep(0.1)
    assert await bus.sweeper.sweep_consumers(60) == 0
    assert await bus.sweeper.sweep_consumers(0.05) == 1
    assert await bus.intake.consumers(0) == {"one": True, "owner": False}
