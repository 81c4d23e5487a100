"""Claims, leases and release, as two consumers see them."""

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from schemas.audio import decode_session
from schemas.keys import GROUP, Keys
from tests.redis.claiming import claim
from tests.redis.contracts import contract_of
from tests.support.harness import ON_EACH_BUS
from worker.bus import scripts
from worker.bus.ownership import (
    ClaimResult,
    Fence,
    HeartbeatReport,
    OwnedEntry,
    OwnedSession,
    SessionLeases,
)

FIELDS: dict[Any, Any] = {"session": "call-1", "encoding": "pcm_s16le", "sample_rate": "16000"}


class Bus:
    """Two consumers on one bus."""

    def __init__(self, redis: Redis, as_worker: Redis, prefix: str) -> None:
        self.redis = redis
        self.keys = Keys(prefix)
        self.one = SessionLeases(as_worker, self.keys, "one", "nonce-1")
        self.two = SessionLeases(as_worker, self.keys, "two", "nonce-2")

    async def announce(self, **changed: str) -> str:
        fields: dict[Any, Any] = {**FIELDS, **changed}
        entry: Any = await self.redis.xadd(self.keys.sessions, fields)
        return str(entry.decode())

    async def restore(self, intake: SessionLeases, lost: OwnedSession, after: str) -> bool:
        return await intake.restore_entry(lost.fence.entry_id, lost.run, lost.fields, after)

    async def claim(self, intake: SessionLeases, owned: OwnedEntry, run: str = "") -> ClaimResult:
        if run:
            fields = {**owned.fields, b"run": run.encode()}
            owned = msgspec.structs.replace(owned, fields=fields)
        return await claim(intake, owned)

    async def owner(self, entry: str) -> tuple[str, int] | None:
        rows: Any = await self.redis.xpending_range(self.keys.sessions, GROUP, entry, entry, 1)
        return (rows[0]["consumer"].decode(), rows[0]["times_delivered"]) if rows else None


@pytest.fixture
async def bus(
    redis: Redis, as_worker: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> Bus:
    expected_leftovers += ["sessions", "{0}:*"]
    bus = Bus(redis, as_worker, bus_prefix)
    await bus.one.ensure_group()
    return bus


async def test_every_entry_goes_to_one_consumer(bus: Bus) -> None:
    entries = {await bus.announce(session=f"call-{n}") for n in range(5)}
    first = await bus.one.read_new(3, 10)
    second = await bus.two.read_new(3, 10)
    assert len(first) == 3
    assert {owned.entry_id for owned in first + second} == entries
    assert all(owned.delivery_count == 1 for owned in first + second)


@ON_EACH_BUS
async def test_lost_group_is_recreated_from_the_first_entry(bus: Bus) -> None:
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    entry = await bus.announce()
    assert [owned.entry_id for owned in await bus.one.read_new(1, 10)] == [entry]
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    assert not (await bus.one.take_over(1, 0)).owned
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    await bus.one.release([(entry, 1)])
    await bus.redis.delete(bus.keys.sessions)
    assert (await bus.one.heartbeat([(entry, 1)])).missing == {entry}


@contract_of(scripts.claim)
async def test_claim_verdicts(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    first = await bus.claim(bus.one, owned)
    assert (first.verdict, first.seq, first.checkpoint, first.run) == (
        "new",
        1,
        b"{}",
        owned.entry_id,
    )
    assert (await bus.claim(bus.one, owned)).verdict == "taken", "a retry by the same owner"
    assert (await bus.claim(bus.two, owned)).verdict == "stale", "same count, another process"

    later = msgspec.structs.replace(owned, delivery_count=2)
    assert (await bus.claim(bus.two, later)).verdict == "taken"
    outdated = await bus.claim(bus.one, owned)
    assert (outdated.verdict, outdated.seq) == ("stale", 2), "the count to outbid"

    again = msgspec.structs.replace(owned, entry_id=await bus.announce())
    assert (await bus.claim(bus.two, again)).verdict == "duplicate"
    assert (await bus.claim(bus.two, again, run=owned.entry_id)).verdict == "taken", "restored"
    assert (await bus.claim(bus.one, later)).verdict == "duplicate", "the old entry is replaced"


@contract_of(scripts.raise_delivery_count)
async def test_claim_outbids_the_owner_before_a_group_loss(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    await bus.claim(bus.one, msgspec.structs.replace(owned, delivery_count=7))
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    assert await bus.two.raise_delivery_count(owned, 8) is None, "there is no group"
    await bus.two.ensure_group()
    (again,) = await bus.two.read_new(1, 10)
    stale = await bus.claim(bus.two, again)
    assert (stale.verdict, stale.seq) == ("stale", 7)
    assert await bus.one.raise_delivery_count(owned, 8) is None, "not its own"
    raised = await bus.two.raise_delivery_count(again, 8)
    assert raised == msgspec.structs.replace(again, delivery_count=8)
    assert await bus.two.raise_delivery_count(again, 8) == raised, "the first reply was lost"
    assert (
        await bus.two.raise_delivery_count(msgspec.structs.replace(again, delivery_count=3), 9)
        is None
    )
    assert await bus.owner(owned.entry_id) == ("two", 8)
    assert (await bus.claim(bus.two, raised)).verdict == "taken"


async def test_run_counts_only_if_the_state_has_it(bus: Bus) -> None:
    """A producer may write any `run`, but must not restart what (`run`, `seq`) already names."""
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    first = await bus.claim(bus.one, owned, run="1-1")
    assert (first.verdict, first.run) == ("new", owned.entry_id)
    again = msgspec.structs.replace(owned, entry_id=await bus.announce())
    assert (await bus.claim(bus.two, again, run="1-1")).verdict == "duplicate"
    assert (await bus.claim(bus.two, again, run="no id")).verdict == "duplicate"
    await bus.redis.delete(bus.keys.state("0", "call-1"))
    afresh = await bus.claim(bus.two, again, run=first.run)
    assert (afresh.verdict, afresh.run) == ("new", again.entry_id)
    await bus.redis.hset(bus.keys.state("0", "call-1"), "status", "ended")
    assert (await bus.claim(bus.two, again, run=first.run)).verdict == "over"


@contract_of(scripts.restore_entry)
async def test_vanished_entry_is_restored_once(bus: Bus) -> None:
    entry = await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    session = decode_session(owned.fields)
    held = OwnedSession(session, Fence(entry, 1, "nonce-1"), entry, owned.fields)
    assert not await bus.restore(bus.two, held, await bus.two.last_entry()), "it is pending"
    await bus.redis.xtrim(bus.keys.sessions, maxlen=0)
    await bus.redis.xack(bus.keys.sessions, GROUP, entry)
    after = await bus.one.last_entry()
    assert after == entry
    assert await bus.restore(bus.one, held, after)
    await bus.announce(session="call-2")
    assert await bus.restore(bus.one, held, after), "the first reply was lost"
    back, other = await bus.two.read_new(5, 10)
    assert (back.fields[b"run"].decode(), back.fields[b"session"]) == (entry, b"call-1")
    assert other.fields[b"session"] == b"call-2"
    await bus.redis.xack(bus.keys.sessions, GROUP, back.entry_id)
    gone = msgspec.structs.replace(held, fence=Fence(back.entry_id, 1, "nonce-2"))
    assert await bus.restore(bus.two, gone, await bus.two.last_entry()), (
        "acknowledged by another client"
    )
    (third,) = await bus.two.read_new(5, 10)
    assert third.fields[b"run"].decode() == entry
    assert await bus.redis.xrange(bus.keys.sessions, back.entry_id, back.entry_id) == []


async def test_entry_due_from_a_recreated_group_is_not_restored(bus: Bus) -> None:
    entry = await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    held = OwnedSession(
        decode_session(owned.fields), Fence(entry, 1, "nonce-1"), entry, owned.fields
    )
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    assert not await bus.restore(bus.one, held, entry), "a new group begins at the first entry"
    await bus.one.ensure_group()
    assert not await bus.restore(bus.one, held, entry)
    await bus.redis.delete(bus.keys.sessions)
    assert await bus.one.last_entry() == "0-0"
    assert await bus.restore(bus.one, held, "0-0")
    await bus.one.ensure_group()
    (back,) = await bus.two.read_new(5, 10)
    assert back.fields[b"run"].decode() == entry


async def test_session_started_is_published_once(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    for count in (1, 1, 2, 3):
        await bus.claim(bus.one, msgspec.structs.replace(owned, delivery_count=count))
    assert await bus.redis.xlen(bus.keys.turns("0")) == 1


async def test_claim_of_an_ended_session(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    await bus.claim(bus.one, owned)
    await bus.redis.hset(bus.keys.state("0", "call-1"), "status", "ended")
    assert (await bus.claim(bus.two, owned)).verdict == "over", "left by a crash right at the end"
    other = msgspec.structs.replace(owned, entry_id=await bus.announce())
    assert (await bus.claim(bus.two, other)).verdict == "ended"


@contract_of(scripts.heartbeat)
async def test_heartbeat_renews_reports_and_finds_entries(bus: Bus) -> None:
    for n in range(5):
        await bus.announce(session=f"call-{n}")
    kept, taken, trimmed, unheard, given = await bus.one.read_new(5, 10)
    await bus.redis.xclaim(bus.keys.sessions, GROUP, "two", 0, [taken.entry_id])
    await bus.one.release([(given.entry_id, given.delivery_count)])
    await bus.redis.xack(bus.keys.sessions, GROUP, trimmed.entry_id)
    report = await bus.one.heartbeat(
        [(owned.entry_id, owned.delivery_count) for owned in (kept, taken, trimmed, given)]
    )
    assert report.taken_by_others == {taken.entry_id, given.entry_id}
    assert report.missing == {trimmed.entry_id}
    assert report.unclaimed == ((unheard.entry_id, 1),)
    assert await bus.owner(kept.entry_id) == ("one", 1), "touching does not count as a delivery"


async def test_heartbeat_restores_counts_in_a_recreated_group(bus: Bus) -> None:
    entry = await bus.announce()
    await bus.one.read_new(1, 10)
    report = await bus.one.heartbeat([(entry, 7)])
    assert report == HeartbeatReport(frozenset(), frozenset(), ())
    assert await bus.owner(entry) == ("one", 7)
    report = await bus.one.heartbeat([(entry, 5)])
    assert (report.taken_by_others, report.missing) == (frozenset(), frozenset())
    assert report.unclaimed == ((entry, 7),), "another consumer owned it meanwhile: claim it again"


async def test_heartbeat_of_many_entries(bus: Bus) -> None:
    async with bus.redis.pipeline(transaction=False) as announcements:
        for n in range(2_300):
            announcements.xadd(bus.keys.sessions, {**FIELDS, "session": f"call-{n}"})
        await announcements.execute()
    owned = await bus.one.read_new(2_300, 10)
    report = await bus.one.heartbeat([(each.entry_id, each.delivery_count) for each in owned])
    assert not report.taken_by_others
    assert not report.missing
    assert not report.unclaimed


@contract_of(scripts.take_over)
async def test_takeover_waits_for_the_lease(bus: Bus) -> None:
    entry = await bus.announce()
    await bus.one.read_new(1, 10)
    assert not (await bus.two.take_over(10, 60_000)).owned
    (owned,) = (await bus.two.take_over(10, 0)).owned
    assert (owned.entry_id, owned.delivery_count) == (entry, 2)
    assert decode_session(owned.fields).session == "call-1"
    assert await bus.owner(entry) == ("two", 2)
    assert not (await bus.two.take_over(10, 0)).owned, "not from the same consumer"


@contract_of(scripts.release)
async def test_released_entry_is_taken_over_at_once(bus: Bus) -> None:
    entry = await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    await bus.one.release([(owned.entry_id, 7)])
    assert await bus.owner(entry) == ("one", 1), "not with another owner's count"
    await bus.one.release([(owned.entry_id, owned.delivery_count)])
    (taken,) = (await bus.two.take_over(10, 60_000)).owned
    assert (taken.entry_id, taken.delivery_count) == (entry, 2)
    await bus.one.release([(owned.entry_id, owned.delivery_count)])
    assert await bus.owner(entry) == ("two", 2), "the old owner releases nothing"


async def test_takeover_is_bounded(bus: Bus) -> None:
    for n in range(8):
        await bus.announce(session=f"call-{n}")
    given = await bus.one.read_new(4, 10)
    await bus.one.release([(owned.entry_id, owned.delivery_count) for owned in given])
    await bus.one.read_new(4, 10)
    assert len((await bus.two.take_over(6, 0)).owned) == 6


async def test_declined_entries_are_left_to_others(bus: Bus) -> None:
    entries = [await bus.announce(session=f"call-{n}") for n in range(4)]
    owned = await bus.one.read_new(4, 10)
    await bus.one.release([(each.entry_id, each.delivery_count) for each in owned])
    declined = [entries[0], entries[1]]
    taken = (await bus.two.take_over(1, 0, (), declined)).owned
    assert [each.entry_id for each in taken] == [entries[2]], "they do not hide the next one"
    taken = (await bus.two.take_over(10, 0, (), declined)).owned
    assert [each.entry_id for each in taken] == [entries[3]]
    taken = (await bus.one.take_over(10, 60_000)).owned
    assert [each.entry_id for each in taken] == declined


async def test_last_audio_is_known_after_its_entry_is_gone(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    entry = decode_session(owned.fields)
    assert await bus.one.last_audio(entry) == "0-0"
    key = bus.keys.audio(entry.lane, entry.session)
    last = "5-0"
    await bus.redis.xadd(key, {"audio": b"x"}, last)
    await bus.redis.xtrim(key, maxlen=0)
    assert await bus.one.last_audio(entry) == last
    await bus.redis.delete(key)
    await bus.redis.set(key, "another program's")
    assert await bus.one.last_audio(entry) == "0-0"


async def test_session_is_live_from_its_claim_to_its_end(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    entry = decode_session(owned.fields)
    assert not await bus.one.is_live(owned, entry)
    assert (await bus.claim(bus.one, owned)).verdict == "new"
    assert await bus.one.is_live(owned, entry)
    other = msgspec.structs.replace(owned, entry_id="1-0")
    assert not await bus.one.is_live(other, entry), "another entry of the same session"
    restored = msgspec.structs.replace(
        other, fields={**owned.fields, b"run": owned.entry_id.encode()}
    )
    assert await bus.one.is_live(restored, entry)
    state = bus.keys.state(entry.lane, entry.session)
    await bus.redis.hset(state, "status", "ended")
    assert not await bus.one.is_live(owned, entry)
    await bus.redis.delete(state)
    await bus.redis.set(state, "another program's")
    assert not await bus.one.is_live(owned, entry)


@contract_of(scripts.complete)
async def test_settled_entries_are_deleted(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    for _ in range(2):
        await bus.one.complete(owned.entry_id)
    assert await bus.redis.xlen(bus.keys.sessions) == 0
    assert await bus.owner(owned.entry_id) is None


async def test_entry_stays_if_redis_lost_the_end_of_its_session(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    entry = decode_session(owned.fields)
    claimed = await bus.claim(bus.one, owned)
    assert not await bus.one.complete_ended(owned.entry_id, entry, claimed.run)
    assert await bus.owner(owned.entry_id) == ("one", 1)
    await bus.redis.hset(bus.keys.state(entry.lane, entry.session), "status", "ended")
    for _ in range(2):
        assert await bus.one.complete_ended(owned.entry_id, entry, claimed.run)
    assert await bus.redis.xlen(bus.keys.sessions) == 0


async def test_entries_of_a_consumer_of_any_name_are_taken_over(bus: Bus) -> None:
    entry = await bus.announce()
    sessions: Any = {bus.keys.sessions: ">"}
    await bus.redis.xreadgroup(GROUP, b"\xff", sessions)  # type: ignore[arg-type]
    (owned,) = (await bus.two.take_over(10, 0)).owned
    assert (owned.entry_id, owned.delivery_count) == (entry, 2)


async def test_dead_workers_are_taken_over_before_their_lease(bus: Bus) -> None:
    entry = await bus.announce()
    await bus.one.read_new(1, 10)
    assert not (await bus.two.take_over(10, 60_000, ["unknown"])).owned
    (owned,) = (await bus.two.take_over(10, 60_000, ["unknown", "one"])).owned
    assert (owned.entry_id, owned.delivery_count, owned.owner) == (entry, 2, "one")


@contract_of(scripts.delete_consumer)
async def test_consumer_is_deleted_only_when_it_owns_nothing(bus: Bus) -> None:
    await bus.announce()
    (owned,) = await bus.one.read_new(1, 10)
    assert not await bus.two.delete_consumer("one")
    await bus.one.complete(owned.entry_id)
    assert await bus.two.delete_consumer("one")
    assert await bus.redis.xinfo_consumers(bus.keys.sessions, GROUP) == []
    await bus.redis.xgroup_destroy(bus.keys.sessions, GROUP)
    assert await bus.two.delete_consumer("one"), "no consumer is left to delete"
