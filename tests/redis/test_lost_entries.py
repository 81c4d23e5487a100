"""Sessions whose entry left the stream and whose owner cannot restore it."""

from typing import Any

import pytest
from redis.asyncio import Redis

from schemas.audio import decode_session
from schemas.keys import GROUP, Keys
from tests.redis.claiming import claim
from tests.support.harness import ON_CLUSTER_TOO
from worker.bus import lost_entries as lost_module
from worker.bus.lost_entries import OrphanRecovery
from worker.bus.ownership import HeartbeatReport, OwnedEntry, SessionLeases


class Bus:
    """Two workers on one bus."""

    def __init__(self, redis: Redis, as_worker: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self.dead = SessionLeases(as_worker, keys, "dead", "nonce-1")
        self.alive = SessionLeases(as_worker, keys, "alive", "nonce-2")
        self.lost = OrphanRecovery(as_worker, keys, self.alive)
        self.other = OrphanRecovery(as_worker, keys, self.dead)

    async def run(self, session: str, lane: str = "0") -> str:
        """Run a session on the worker that will die; return its entry."""
        fields: Any = {
            "session": session,
            "lane": lane,
            "metadata": '{"number": "é"}',
            "encoding": "pcm_s16le",
            "sample_rate": "16000",
        }
        entry: Any = await self.redis.xadd(self.keys.sessions, fields)
        (owned,) = await self.dead.read_new(1, 10)
        assert (await claim(self.dead, owned)).verdict == "new"
        return str(entry.decode())

    async def trim(self, *entries: str) -> None:
        await self.redis.xdel(self.keys.sessions, *entries)


@pytest.fixture
async def bus(
    redis: Redis,
    as_worker: Redis,
    bus_prefix: str,
    expected_leftovers: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Bus:
    monkeypatch.setattr(lost_module, "OWNER_GRACE_S", 0.0)
    monkeypatch.setattr(lost_module, "_STATES_PER_PIPELINE", 2)
    expected_leftovers += ["sessions", "{*}:*"]
    bus = Bus(redis, as_worker, Keys(bus_prefix))
    await bus.alive.ensure_group()
    return bus


@ON_CLUSTER_TOO
async def test_lost_session_is_found_by_its_former_entry(bus: Bus) -> None:
    entries = [await bus.run(f"call-{n}", "eu" if n % 2 else "0") for n in range(5)]
    await bus.trim(*entries[1:3])
    taken_over = await bus.alive.take_over(50, 60_000, ["dead"])
    assert taken_over.lost
    assert {owned.entry_id for owned in taken_over.owned} == {entries[0], *entries[3:]}
    for _ in range(2):
        assert not await bus.lost.recover_known(), "no entry is left to find"
    assert not (await bus.alive.take_over(50, 60_000, ["dead"])).lost
    back = await bus.alive.read_new(50, 10)
    assert {decode_session(owned.fields).session for owned in back} == {"call-1", "call-2"}
    for owned in back:
        assert owned.fields[b"run"].decode() in entries[1:3]
        assert decode_session(owned.fields).metadata == {"number": "é"}
        assert (await claim(bus.alive, owned)).verdict == "taken"


async def test_lost_released_session_is_found_too(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.dead.release([(entry, 1)])
    await bus.trim(entry)
    assert (await bus.alive.take_over(50, 60_000)).lost
    assert not await bus.lost.recover_known()
    assert len(await bus.alive.read_new(50, 10)) == 1


async def test_lost_entries_block_no_takeover(bus: Bus) -> None:
    entries = [await bus.run(f"call-{n}") for n in range(6)]
    await bus.trim(*entries[:4])
    assert not (await bus.alive.take_over(2, 60_000, ["dead"])).owned
    await bus.alive.take_over(2, 60_000, ["dead"])
    assert len((await bus.alive.take_over(2, 60_000, ["dead"])).owned) == 2
    assert await bus.redis.zcard(bus.keys.lost) == 4


@pytest.mark.parametrize("step", ["heartbeat", "release", "outbid"])
async def test_step_of_the_owner_does_not_hide_a_lost_entry(bus: Bus, step: str) -> None:
    """Redis removes a deleted entry from the pending list as soon as a consumer claims it."""
    entries = [await bus.run(f"call-{n}") for n in range(3)]
    _, gone, _ = entries
    await bus.trim(gone)
    match step:
        case "heartbeat":
            report = await bus.dead.heartbeat([(entry, 1) for entry in entries])
            assert report == HeartbeatReport(frozenset(), frozenset({gone}), ())
        case "release":
            assert await bus.dead.release([(gone, 1)]) == 0
        case "outbid":
            assert await bus.dead.raise_delivery_count(OwnedEntry(gone, 1, {}), 5) == OwnedEntry(
                gone, 5, {}
            )
    assert await bus.redis.zrange(bus.keys.lost, 0, -1) == [gone.encode()]
    assert not await bus.lost.recover_known()
    (owned,) = await bus.alive.read_new(50, 10)
    assert owned.fields[b"run"].decode() == gone


async def test_entry_restored_by_its_owner_is_not_lost(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.trim(entry)
    await bus.dead.heartbeat([(entry, 1)])
    fields = {b"session": b"call-1"}
    assert await bus.dead.restore_entry(entry, entry, fields, await bus.dead.last_entry())
    assert await bus.redis.zcard(bus.keys.lost) == 0
    assert await bus.lost.recover_all() == 0


async def test_two_concurrent_searches_restore_an_entry_once(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.trim(entry)
    await bus.alive.take_over(50, 60_000, ["dead"])
    after = await bus.alive.last_entry()
    found = [live async for live in bus.lost._live()]
    assert await bus.lost._restore(found, after) == 1
    await bus.alive.restore_entry(entry, entry, {}, after)
    assert await bus.other._restore(found, await bus.alive.last_entry()) == 0
    assert await bus.redis.xlen(bus.keys.sessions) == 1


async def test_one_worker_searches_at_a_time(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.trim(entry)
    await bus.alive.take_over(50, 60_000, ["dead"])
    await bus.redis.set(bus.keys.search, "another", px=60_000)
    assert not await bus.lost.recover_known()
    assert await bus.redis.xlen(bus.keys.sessions) == 0
    await bus.redis.delete(bus.keys.search)
    await bus.lost.recover_known()
    assert await bus.redis.xlen(bus.keys.sessions) == 1
    assert not await bus.redis.exists(bus.keys.search)


async def test_recovery_after_the_group_is_lost(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.trim(entry)
    await bus.alive.take_over(50, 60_000, ["dead"])
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    assert not await bus.lost.recover_known()
    assert len(await bus.alive.read_new(50, 10)) == 1


async def test_unattributable_entries_are_reported(bus: Bus) -> None:
    """A worker died between an entry and its claim, or the session has ended."""
    await bus.run("call-1")
    unclaimed: Any = await bus.redis.xadd(bus.keys.sessions, {"session": "call-2"})
    await bus.dead.read_new(1, 10)
    over = await bus.run("call-3")
    await bus.redis.hset(bus.keys.state("0", "call-3"), "status", "ended")
    await bus.trim(unclaimed, over)
    assert (await bus.alive.take_over(50, 60_000, ["dead"])).lost
    assert await bus.lost.recover_known()
    assert await bus.redis.zcard(bus.keys.lost) == 0
    assert await bus.lost.recover_all() == 0
    assert await bus.redis.xlen(bus.keys.sessions) == 1


async def test_entry_lost_again_after_its_restoration(bus: Bus) -> None:
    """The state has only the previous entry, so the later one cannot be attributed to a session."""
    entry = await bus.run("call-1")
    await bus.trim(entry)
    await bus.alive.take_over(50, 60_000, ["dead"])
    await bus.lost.recover_known()
    (again,) = await bus.dead.read_new(50, 10)
    await bus.trim(again.entry_id)
    await bus.alive.take_over(50, 60_000, ["dead"])
    assert await bus.lost.recover_known()
    assert await bus.lost.recover_all() == 1
    (owned,) = await bus.alive.read_new(50, 10)
    assert (await claim(bus.alive, owned)).verdict == "taken"


async def test_full_search_announces_every_live_session(bus: Bus) -> None:
    """Another client acknowledges and deletes the entry, so it is not in the pending list."""
    entries = [await bus.run(f"call-{n}") for n in range(3)]
    assert await bus.lost.recover_all() == 0
    await bus.trim(entries[1])
    await bus.redis.xack(bus.keys.sessions, GROUP, entries[1])
    assert not (await bus.alive.take_over(50, 60_000, ["dead"])).lost
    assert await bus.lost.recover_all() == 1
    assert await bus.lost.recover_all() == 0, "its run is announced"
    (owned,) = await bus.alive.read_new(50, 10)
    assert decode_session(owned.fields).session == "call-1"


@pytest.mark.parametrize("field", ["fields", "run", "entry"])
async def test_unreadable_state_blocks_no_other_recovery(
    bus: Bus, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    entries = [await bus.run(f"call-{n}") for n in range(2)]
    await bus.redis.hset(bus.keys.state("0", "call-0"), field, b"\xff")
    await bus.redis.hset(bus.keys.state("0", "stranger"), mapping={"status": "live"})
    await bus.trim(*entries)
    await bus.alive.take_over(50, 60_000, ["dead"])
    await bus.lost.recover_known()
    rows: Any = await bus.redis.xrange(bus.keys.sessions)
    assert b"call-1" in [fields[b"session"] for _, fields in rows]
    if field == "fields":
        assert "call-0 cannot be announced again" in caplog.text
    assert await bus.redis.zcard(bus.keys.lost) == 0
