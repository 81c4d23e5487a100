"""Sessions whose entry left the stream, and whose owner cannot put it back."""

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from schemas.audio import decode_session
from schemas.keys import GROUP, Keys
from tests.bus.claiming import claim
from tests.stage import ON_CLUSTER_TOO
from worker.bus import lost as lost_module
from worker.bus.intake import HeartbeatReport, Intake, Owned
from worker.bus.lost import LostSessions

pytestmark = ON_CLUSTER_TOO


class Bus:
    """Two workers on one bus."""

    def __init__(self, redis: Redis, as_worker: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self.dead = Intake(as_worker, keys, "dead", "nonce-1")
        self.alive = Intake(as_worker, keys, "alive", "nonce-2")
        self.lost = LostSessions(as_worker, keys, self.alive)
        self.other = LostSessions(as_worker, keys, self.dead)

    async def run(self, session: str, lane: str = "0") -> str:
        """Have the worker that is to die run a session; return its entry."""
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

    async def pending(self) -> list[str]:
        rows: Any = await self.redis.xpending_range(self.keys.sessions, GROUP, "-", "+", 100)
        return [row["message_id"].decode() for row in rows]


@pytest.fixture
async def bus(
    redis: Redis,
    as_worker: Redis,
    bus_prefix: str,
    expected_leftovers: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Bus:
    monkeypatch.setattr(lost_module, "OWNERS_S", 0.0)
    monkeypatch.setattr(lost_module, "_AT_ONCE", 2)
    expected_leftovers += ["sessions", "{*}:*"]
    bus = Bus(redis, as_worker, Keys(bus_prefix))
    await bus.alive.ensure_group()
    return bus


async def test_a_session_is_found_by_the_entry_it_had(bus: Bus) -> None:
    entries = [await bus.run(f"call-{n}", "eu" if n % 2 else "0") for n in range(5)]
    await bus.trim(*entries[1:3])
    adopted = await bus.alive.adopt(50, 60_000, ["dead"])
    assert adopted.gone == {*entries[1:3]}
    assert {owned.entry for owned in adopted.owned} == {entries[0], *entries[3:]}
    assert await bus.lost.restore(adopted.gone) == 2
    assert await bus.lost.restore(adopted.gone) == 0, "safe to repeat"
    assert not (await bus.alive.adopt(50, 60_000, ["dead"])).gone
    back = await bus.alive.read_new(50, 10)
    assert {decode_session(owned.fields).session for owned in back} == {"call-1", "call-2"}
    for owned in back:
        assert owned.fields[b"run"].decode() in entries[1:3]
        assert decode_session(owned.fields).metadata == {"number": "é"}
        assert (await claim(bus.alive, owned)).verdict == "taken"


async def test_what_was_given_back_is_found_too(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.dead.release([(entry, 1)])
    await bus.trim(entry)
    adopted = await bus.alive.adopt(50, 60_000)
    assert adopted.gone == {entry}
    assert await bus.lost.restore(adopted.gone) == 1


async def test_its_owner_puts_it_back_at_once(bus: Bus) -> None:
    entries = [await bus.run(f"call-{n}") for n in range(3)]
    await bus.trim(entries[1])
    report = await bus.dead.heartbeat([(entry, 1) for entry in entries])
    assert report == HeartbeatReport(frozenset(), frozenset({entries[1]}), ())


@pytest.mark.parametrize("raised", [1, 5])
async def test_nothing_else_that_its_owner_does_hides_it(bus: Bus, raised: int) -> None:
    """Redis takes what left the stream off the pending list as soon as somebody claims it."""
    entry = await bus.run("call-1")
    await bus.trim(entry)
    assert await bus.dead.release([(entry, 1)]) == 0
    assert await bus.dead.outbid(Owned(entry, 1, {}), raised) == Owned(entry, raised, {})
    assert await bus.pending() == [entry]
    assert (await bus.alive.adopt(50, 60_000, ["dead"])).gone == {entry}
    fields = {b"session": b"call-1"}
    assert await bus.dead.announce_again(entry, entry, fields, await bus.dead.last_entry())
    assert await bus.pending() == []


async def test_two_that_look_at_once_put_it_back_once(bus: Bus) -> None:
    entry = await bus.run("call-1")
    await bus.trim(entry)
    after = await bus.alive.last_entry()
    found = [live async for live in bus.lost._live([entry])]
    for lost in (bus.lost, bus.other):
        await lost._put_back(found, after)
    assert await bus.redis.xlen(bus.keys.sessions) == 1
    for lost in (bus.lost, bus.other):
        await lost.restore([entry])
    assert await bus.redis.xlen(bus.keys.sessions) == 1


async def test_what_no_session_had_is_forgotten(bus: Bus) -> None:
    """As where a worker died between an entry and its claim, or the session is over."""
    await bus.run("call-1")
    unclaimed: Any = await bus.redis.xadd(bus.keys.sessions, {"session": "call-2"})
    await bus.dead.read_new(1, 10)
    over = await bus.run("call-3")
    await bus.redis.hset(bus.keys.state("0", "call-3"), "status", "ended")
    await bus.trim(unclaimed, over)
    gone = (await bus.alive.adopt(50, 60_000, ["dead"])).gone
    assert gone == {unclaimed.decode(), over}
    assert await bus.lost.restore(gone) == 0
    assert len(await bus.pending()) == 1


async def test_no_entry_that_is_there_is_touched(bus: Bus) -> None:
    entry = await bus.run("call-1")
    assert await bus.lost.restore([]) == await bus.lost.restore(["1-1"]) == 0
    assert await bus.pending() == [entry]


async def test_all_that_is_live_is_announced(bus: Bus) -> None:
    """Acknowledged by a stranger, and then deleted: not in the pending list either."""
    entries = [await bus.run(f"call-{n}") for n in range(3)]
    assert await bus.lost.restore_all() == 0
    await bus.trim(entries[1])
    await bus.redis.xack(bus.keys.sessions, GROUP, entries[1])
    assert not (await bus.alive.adopt(50, 60_000, ["dead"])).gone
    assert await bus.lost.restore_all() == 1
    assert await bus.lost.restore_all() == 0, "its run is announced"
    (owned,) = await bus.alive.read_new(50, 10)
    assert decode_session(owned.fields).session == "call-1"


async def test_a_state_that_cannot_be_read_holds_up_no_other(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [await bus.run(f"call-{n}") for n in range(2)]
    await bus.redis.hset(bus.keys.state("0", "call-0"), "fields", b"\xff")
    await bus.redis.hset(bus.keys.state("0", "stranger"), mapping={"status": "live"})
    await bus.trim(*entries)
    assert await bus.lost.restore(entries) == 1
    assert "call-0 cannot be announced again" in caplog.text
    assert msgspec.json.encode(await bus.pending()) == b"[]"
