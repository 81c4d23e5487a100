"""The calls of a gateway on a real Redis: outages, ended sessions, lost sockets, drains."""

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas import AudioEntry, Encoding, Keys, SessionEntry, decode_audio
from schemas.audio import TurnConfig
from tests.support.acl import GuardedRedis, as_user
from tests.support.harness import ON_EACH_BUS
from tests.support.polling import eventually
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import MAX_WIRES, connect
from worker.bus.client.wire import Wires
from worker.ingest import calls as calls_module
from worker.ingest.calls import Call, CallLimits, CallRefusedError, Calls
from worker.ingest.counters import IngestCounters
from worker.ingest.pipeline import AppendPipeline
from worker.ingest.records import (
    Audio,
    Configured,
    Ended,
    Marked,
    ProtocolError,
    Started,
    TurnEnded,
)
from worker.telemetry import traces

LIMITS = CallLimits(grace_s=60.0)
CHUNK = 3_200
LEFT = ["sessions", "{0}:audio:*", "{0}:producer:*"]


def session(name: str, sample_rate: int = 16_000) -> SessionEntry:
    return SessionEntry(session=name, encoding=Encoding.PCM_S16LE, sample_rate=sample_rate)


def started(*names: str) -> Started:
    return Started(tuple(map(session, names)))


def chunk(value: int) -> bytes:
    return value.to_bytes(2, "big") * (CHUNK // 2)


def value(entry: AudioEntry) -> int:
    return int.from_bytes(entry.audio[:2], "big")


class Bus:
    """What the calls of one test wrote."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys

    async def entries(self, name: str) -> list[AudioEntry]:
        found: Any = await self.redis.xrange(self.keys.audio("0", name))
        return [decode_audio(fields) for _, fields in found]

    async def announced(self) -> list[str]:
        found: Any = await self.redis.xrange(self.keys.sessions)
        return [fields[b"session"].decode() for _, fields in found]


@pytest.fixture
def counters() -> IngestCounters:
    return IngestCounters()


@pytest.fixture
def bus(redis: Redis, bus_prefix: str, expected_leftovers: list[str]) -> Bus:
    expected_leftovers += LEFT
    return Bus(redis, Keys(bus_prefix))


@pytest.fixture
async def calls(bus: Bus, as_gateway: Redis, counters: IngestCounters) -> AsyncIterator[Calls]:
    async with Calls(as_gateway, bus.keys, LIMITS, counters) as calls:
        yield calls


async def has_entries(counters: IngestCounters, count: int) -> None:
    await eventually(lambda: counters.entries == count, f"{count} entries")


async def until_done(calls: Calls) -> None:
    await eventually(lambda: calls.count == 0, "all calls to end")


def without_repeats(entries: list[AudioEntry]) -> list[AudioEntry]:
    """Return the entries that a worker accepts: of those with the same `seq`, the first."""
    numbers: set[int] = set()
    kept = []
    for entry in entries:
        if entry.seq is None or entry.seq not in numbers:
            kept.append(entry)
        if entry.seq is not None:
            numbers.add(entry.seq)
    return kept


@ON_EACH_BUS
async def test_call_is_appended_in_order(calls: Calls, bus: Bus, counters: IngestCounters) -> None:
    call = calls.open(started("s"), "twilio")
    call.feed(Marked({"early": 1}))
    assert counters.calls_open["twilio"] == 1
    for at in range(50):
        call.feed(Audio(chunk(at)))
    call.feed(TurnEnded())
    call.feed(Configured(TurnConfig(turn_end_timeout_ms=700)))
    call.feed(Ended())
    await until_done(calls)
    entries = await bus.entries("s")
    assert entries[0].mark == {"early": 1}
    assert [value(entry) for entry in entries[1:51]] == [*range(50)]
    assert [entry.seq for entry in entries[:52]] == [*range(52)]
    assert len({entry.src for entry in entries[:52]}) == 1
    assert entries[51].turn_end
    assert entries[52].config == TurnConfig(turn_end_timeout_ms=700)
    assert entries[53:] == [AudioEntry(end=True)]
    assert await bus.announced() == ["s"]
    assert counters.calls_ended["ended"] == 1
    assert counters.calls_open["twilio"] == 0
    assert (counters.entries, counters.bytes) == (54, 50 * CHUNK)
    assert counters.append_latency.count > 0


async def test_partial_chunk_is_appended_without_more_audio(calls: Calls, bus: Bus) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(1)[:640]))
    assert await eventually(lambda: bus.entries("s"), "the partial chunk")


async def test_call_without_audio_appends_nothing(
    calls: Calls, bus: Bus, counters: IngestCounters
) -> None:
    call = calls.open(started("s"))
    call.feed(Marked({"a": 1}))
    call.disconnected(clean=True)
    await until_done(calls)
    assert await bus.announced() == []
    assert await bus.entries("s") == []
    assert counters.calls_ended["silent"] == 1


async def test_two_tracks_are_two_sessions(calls: Calls, bus: Bus) -> None:
    call = calls.open(started("s-a", "s-b", "s-c"))
    call.feed(Audio(chunk(1), track=0))
    call.feed(Audio(chunk(2), track=1))
    call.feed(Marked({"a": 1}, track=1))
    call.feed(Ended())
    await until_done(calls)
    first, second = await bus.entries("s-a"), await bus.entries("s-b")
    assert [value(entry) for entry in first] == [1, 0]
    assert [value(entry) for entry in second] == [2, 0, 0]
    assert second[1].mark == {"a": 1}
    assert sorted(await bus.announced()) == ["s-a", "s-b"], "s-c had no audio"


async def test_records_that_do_not_fit_are_refused(calls: Calls) -> None:
    call = calls.open(started("s"))
    with pytest.raises(ProtocolError, match="no track 1"):
        call.feed(Audio(b"", track=1))
    with pytest.raises(ProtocolError, match="already started"):
        call.feed(started("s"))


@pytest.mark.parametrize("away", ["frozen", "killed"])
async def test_outage_loses_and_repeats_nothing(away: str, counters: IngestCounters) -> None:
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "ingest")) as as_gateway,
        Calls(as_gateway, Keys(), LIMITS, counters) as calls,
    ):
        bus = Bus(redis, Keys())
        call = calls.open(started("s-a", "s-b"))
        call.feed(Audio(chunk(0)))
        await eventually(lambda: bus.entries("s-a"), "the first chunk")
        call.feed(Audio(chunk(1)))
        if away == "frozen":
            os.kill(server.pid, signal.SIGSTOP)
        else:
            await server.kill()
        for at in range(2, 100):
            call.feed(Audio(chunk(at)))
            call.feed(Marked({"n": at}))
            call.feed(Audio(chunk(at), track=1))
            await anyio.sleep(0.01)
        if away == "frozen":
            os.kill(server.pid, signal.SIGCONT)
        else:
            await server.restart()
        call.feed(Ended())
        await until_done(calls)
        entries = without_repeats(await bus.entries("s-a"))
        assert [value(entry) for entry in entries if entry.audio] == [*range(100)]
        assert [entry.seq for entry in entries if entry.src] == [*range(198)]
        assert [entry.mark["n"] for entry in entries if entry.mark] == [*range(2, 100)]
        other = without_repeats(await bus.entries("s-b"))
        assert [value(entry) for entry in other if entry.audio] == [*range(2, 100)]
        assert sorted(await bus.announced()) == ["s-a", "s-b"]
        assert counters.dropped_ms == 0


async def test_long_outage_drops_the_oldest_audio(counters: IngestCounters) -> None:
    limits = CallLimits(buffer_s=1.0)
    async with (
        GuardedRedis.start(append_only=True) as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "ingest")) as as_gateway,
        Calls(as_gateway, Keys(), limits, counters) as calls,
    ):
        bus = Bus(redis, Keys())
        call = calls.open(started("s"))
        call.feed(Audio(chunk(0)))
        await eventually(lambda: bus.entries("s"), "the first chunk")
        await server.kill()
        for at in range(1, 100):
            call.feed(Audio(chunk(at)))
        call.feed(Marked({"a": 1}))
        call.feed(Ended())
        await server.restart()
        await until_done(calls)
        entries = await bus.entries("s")
        seqs = [entry.seq for entry in entries if entry.audio]
        assert seqs == [value(entry) for entry in entries if entry.audio]
        assert seqs == [0, *range(90, 100)]
        mark = AudioEntry(mark={"a": 1}, seq=100, src=entries[0].src)
        assert entries[-2:] == [mark, AudioEntry(end=True)]
        assert counters.dropped_ms == 89 * 100


async def test_repeated_append_has_the_same_number(
    calls: Calls, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = 0
    append = AppendPipeline.append

    async def lossy(self: AppendPipeline, *args: Any, **options: Any) -> Any:
        nonlocal losses
        added = await append(self, *args, **options)
        losses += 1
        if losses % 2:
            raise RedisConnectionError("reset")
        return added

    monkeypatch.setattr(AppendPipeline, "append", lossy)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the first chunk")
    for at in range(3):
        call.feed(Marked({"n": at}))
        await eventually(lambda: bus.redis.xlen(bus.keys.audio("0", "s")), "the mark")
        await anyio.sleep(0.05)
    call.feed(Ended())
    await until_done(calls)
    entries = await bus.entries("s")
    assert losses > 1
    assert len(entries) > 5
    kept = without_repeats(entries)
    assert [entry.mark["n"] for entry in kept if entry.mark] == [0, 1, 2]
    assert [entry.seq for entry in kept if entry.src] == [0, 1, 2, 3]


async def test_lost_reply_to_the_announcement_is_survived(
    calls: Calls, bus: Bus, as_gateway: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    xadd = as_gateway.xadd
    losses = 0

    async def lossy(name: str, *args: Any, **options: Any) -> Any:
        nonlocal losses
        added = await xadd(name, *args, **options)
        if name == bus.keys.sessions and not losses:
            losses += 1
            raise RedisConnectionError("reset")
        return added

    monkeypatch.setattr(as_gateway, "xadd", lossy)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    call.feed(Ended())
    await until_done(calls)
    assert await bus.announced() == ["s", "s"], "a worker rejects the second one as a duplicate"
    assert len(await bus.entries("s")) == 2


async def test_lost_announcement_is_repeated(
    calls: Calls, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis restarts without its data between the announcement and the first append."""
    append = AppendPipeline.append
    failures = 0

    async def fail(self: AppendPipeline, *args: Any, **options: Any) -> Any:
        nonlocal failures
        if not failures:
            failures += 1
            await bus.redis.delete(bus.keys.sessions)
            raise RedisConnectionError("reset")
        return await append(self, *args, **options)

    monkeypatch.setattr(AppendPipeline, "append", fail)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    call.feed(Ended())
    await until_done(calls)
    assert await bus.announced() == ["s"]
    assert [entry.seq for entry in await bus.entries("s")] == [0, None]


@pytest.mark.parametrize("bus_kind", ["cluster"])
async def test_batch_follows_a_slot_that_moved(calls: Calls, bus: Bus, as_gateway: Redis) -> None:
    assert isinstance(as_gateway, ClusterClient)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the first chunk")
    owners = as_gateway._owners
    slot = key_slot(bus.keys.audio("0", "s").encode())
    owners[slot] = next(address for address in owners.values() if address != owners[slot])
    for at in range(1, 10):
        call.feed(Audio(chunk(at)))
    call.feed(Ended())
    await until_done(calls)
    entries = await bus.entries("s")
    assert [entry.seq for entry in entries] == [*range(10), None]


async def test_full_redis_takes_all_or_nothing(counters: IngestCounters) -> None:
    async with (
        GuardedRedis.start() as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "ingest")) as as_gateway,
        Calls(as_gateway, Keys(), LIMITS, counters) as calls,
    ):
        bus = Bus(redis, Keys())
        call = calls.open(started("s"))
        call.feed(Audio(chunk(0)))
        await has_entries(counters, 1)
        await redis.config_set("maxmemory", "1mb")
        for at in range(1, 20):
            call.feed(Audio(chunk(at)))
        await eventually(lambda: not calls.redis_up, "the rejected append")
        assert len(await bus.entries("s")) == 1
        await redis.config_set("maxmemory", "0")
        call.feed(Ended())
        await until_done(calls)
        assert [entry.seq for entry in await bus.entries("s")] == [*range(20), None]


async def test_redis_without_replicas_drops_no_batch(counters: IngestCounters) -> None:
    async with (
        GuardedRedis.start() as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "ingest")) as as_gateway,
        Calls(as_gateway, Keys(), LIMITS, counters) as calls,
    ):
        bus = Bus(redis, Keys())
        call = calls.open(started("s"))
        call.feed(Audio(chunk(0)))
        await has_entries(counters, 1)
        await redis.config_set("min-replicas-to-write", "1")
        for at in range(1, 20):
            call.feed(Audio(chunk(at)))
        await eventually(lambda: call.over or not calls.redis_up, "the rejected batch")
        await redis.config_set("min-replicas-to-write", "0")
        call.feed(Ended())
        await until_done(calls)
        assert [entry.seq for entry in await bus.entries("s")] == [*range(20), None]


@ON_EACH_BUS
async def test_session_that_ends_under_a_batch_is_expected(
    calls: Calls, bus: Bus, counters: IngestCounters, caplog: pytest.LogCaptureFixture
) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await has_entries(counters, 1)
    await bus.redis.delete(bus.keys.audio("0", "s"))
    await bus.redis.set(bus.keys.audio("0", "s"), b"ended")
    for at in range(1, 4):
        call.feed(Audio(chunk(at)))
        call.feed(Marked({"dtmf": "secret"}))
    await eventually(lambda: call.over, "the end of the session")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert "secret" not in caplog.text


async def test_announcement_starts_a_trace(
    calls: Calls, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = TracerProvider().get_tracer("test")
    monkeypatch.setattr(traces, "_tracer", tracer)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    call.feed(Ended())
    await until_done(calls)
    found: Any = await bus.redis.xrange(bus.keys.sessions)
    assert found[0][1][b"traceparent"].startswith(b"00-")


async def test_appends_of_many_calls_share_writes(
    calls: Calls, bus: Bus, counters: IngestCounters
) -> None:
    many = [calls.open(started(f"s-{at}")) for at in range(20)]
    for call in many:
        call.feed(Audio(chunk(0)))
    await has_entries(counters, 20)
    for call in many:
        call.feed(Audio(chunk(1)))
        call.feed(Ended())
    await until_done(calls)
    for at in range(20):
        assert [entry.seq for entry in await bus.entries(f"s-{at}")] == [0, 1, None]


async def test_appends_to_a_slow_redis_are_sent_together(
    calls: Calls, bus: Bus, counters: IngestCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, answer, exchanges = Wires.exchange, anyio.Event(), 0

    async def slow(self: Wires, commands: bytes, count: int) -> Any:
        nonlocal exchanges
        exchanges += 1
        await answer.wait()
        return await exchange(self, commands, count)

    async def announced(count: int) -> None:
        while len(await bus.announced()) < count:
            await anyio.sleep(0.01)

    monkeypatch.setattr(Wires, "exchange", slow)
    many = [calls.open(started(f"s-{at}")) for at in range(30)]
    for at, call in enumerate(many):
        call.feed(Audio(chunk(0)))
        await announced(at + 1)
    answer.set()
    await has_entries(counters, len(many))
    assert exchanges <= MAX_WIRES


async def test_ended_session_stops_the_appends(
    calls: Calls, bus: Bus, counters: IngestCounters
) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the first chunk")
    await bus.redis.delete(bus.keys.audio("0", "s"))
    await bus.redis.set(bus.keys.audio("0", "s"), b"ended")
    call.feed(Audio(chunk(1)))
    await eventually(lambda: call.over, "the end of the session")
    call.feed(Audio(chunk(2)))
    call.feed(Marked({}))
    assert counters.frames_unused == 1
    assert calls.count == 1, "the socket is still open"
    call.disconnected(clean=False)
    await until_done(calls)
    assert counters.calls_ended["over"] == 1


async def test_used_id_is_not_announced(calls: Calls, bus: Bus) -> None:
    await bus.redis.set(bus.keys.audio("0", "s"), b"ended")
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await eventually(lambda: call.over, "the end of the session")
    assert await bus.announced() == []


async def test_vanished_stream_is_not_created_again(
    calls: Calls, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the first chunk")
    await bus.redis.delete(bus.keys.audio("0", "s"))
    for at in range(1, 4):
        call.feed(Audio(chunk(at)))
    await eventually(lambda: call.over, "the end of the session")
    assert await bus.entries("s") == []
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "call s: dropping the rest of its audio: its audio is gone" in errors[0].getMessage()


async def test_live_session_is_continued_without_announcement(
    bus: Bus, as_gateway: Redis, counters: IngestCounters
) -> None:
    for at in range(2):
        async with Calls(as_gateway, bus.keys, LIMITS, counters) as calls:
            call = calls.open(started("s"))
            call.feed(Audio(chunk(at)))
            await has_entries(counters, at + 1)
    entries = await bus.entries("s")
    assert [value(entry) for entry in entries] == [0, 1]
    assert len({entry.src for entry in entries}) == 2
    assert await bus.announced() == ["s"]
    assert counters.calls_ended["drained"] == 2


async def test_lost_socket_is_continued(calls: Calls, bus: Bus) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0), number=9))
    call.disconnected(clean=False)
    assert calls.open(started("s")) is call
    call.feed(Audio(chunk(1), number=1))
    call.feed(Ended())
    await until_done(calls)
    entries = await bus.entries("s")
    assert [entry.seq for entry in entries] == [0, 1, None]
    assert len({entry.src for entry in entries if entry.audio}) == 1
    assert await bus.announced() == ["s"]


async def test_lost_socket_ends_the_call_after_the_grace(
    bus: Bus, as_gateway: Redis, counters: IngestCounters
) -> None:
    async with Calls(as_gateway, bus.keys, CallLimits(grace_s=0.05), counters) as calls:
        call = calls.open(started("s"))
        call.feed(Audio(chunk(0)[:100]))
        call.disconnected(clean=False)
        call.disconnected(clean=False)
        await until_done(calls)
    assert (await bus.entries("s"))[-1].end
    assert counters.calls_ended["lost"] == 1


@ON_EACH_BUS
async def test_call_that_another_gateway_continues_goes_on(
    calls: Calls, bus: Bus, as_gateway: Redis
) -> None:
    counters = IngestCounters()
    async with Calls(as_gateway, bus.keys, CallLimits(grace_s=0.3), counters) as left:
        before = left.open(started("s"))
        before.feed(Audio(chunk(0)))
        await eventually(lambda: bus.entries("s"), "the first chunk")
        before.disconnected(clean=False)
        after = calls.open(started("s"))
        after.feed(Audio(chunk(1)))
        await until_done(left)
    assert counters.calls_ended["lost"] == 1
    after.feed(Audio(chunk(2)))
    after.feed(Ended())
    await until_done(calls)
    entries = await bus.entries("s")
    assert [value(entry) for entry in entries[:-1]] == [0, 1, 2]
    assert [entry.end for entry in entries] == [False, False, False, True]
    assert await bus.announced() == ["s"]


async def test_live_id_is_refused(calls: Calls, counters: IngestCounters) -> None:
    call = calls.open(started("s-a", "s-b"))
    for names in (("s-a", "s-b"), ("s-a",), ("new", "s-b")):
        with pytest.raises(CallRefusedError, match="is live; use one id per call") as refused:
            calls.open(started(*names))
        assert refused.value.status == 409
    call.disconnected(clean=False)
    with pytest.raises(CallRefusedError):
        calls.open(started("s-a"))
    other = Started((session("s-a", sample_rate=8_000), session("s-b")))
    with pytest.raises(CallRefusedError, match="use another id for other audio"):
        calls.open(other)
    assert calls.open(started("s-a", "s-b")) is call
    assert counters.refused["409"] == 5


async def test_calls_without_an_id_each_are_refused(calls: Calls) -> None:
    for names in ((), ("s", "s")):
        with pytest.raises(CallRefusedError) as refused:
            calls.open(started(*names))
        assert refused.value.status == 400


async def test_full_process_refuses_calls(
    bus: Bus, as_gateway: Redis, counters: IngestCounters
) -> None:
    async with Calls(as_gateway, bus.keys, CallLimits(max_calls=1), counters) as calls:
        call = calls.open(started("s"))
        with pytest.raises(CallRefusedError, match="maximum of 1 calls") as refused:
            calls.open(started("t"))
        assert refused.value.status == 503
        call.feed(Ended())
        await until_done(calls)
        calls.open(started("t"))


async def test_drain_waits_for_the_calls(calls: Calls, bus: Bus) -> None:
    call = calls.open(started("s"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(calls.drain, 600.0)
        await eventually(lambda: calls.draining, "the drain")
        with pytest.raises(CallRefusedError, match="shutting down") as refused:
            calls.open(started("t"))
        assert refused.value.status == 503
        call.feed(Audio(chunk(0)))
        call.feed(Ended())
    assert [entry.end for entry in await bus.entries("s")] == [False, True]


async def test_two_drains_return_with_the_last_call(calls: Calls) -> None:
    call = calls.open(started("s"))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(calls.drain, 600.0)
            tasks.start_soon(calls.drain, 600.0)
            await eventually(lambda: calls.draining, "the drains")
            call.feed(Ended())


async def test_drain_ends_the_calls_that_are_left(
    calls: Calls, bus: Bus, counters: IngestCounters
) -> None:
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)[:640]))
    await calls.drain(0.0)
    entries = await bus.entries("s")
    assert [len(entry.audio) for entry in entries] == [640, 0]
    assert entries[-1].end
    assert counters.calls_ended["drained"] == 1


async def test_drain_does_not_wait_for_an_outage(
    counters: IngestCounters, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "FLUSH_TIMEOUT_S", 0.1)
    async with (
        GuardedRedis.start() as server,
        connect(as_user(server.url, "ingest")) as as_gateway,
        Calls(as_gateway, Keys(), LIMITS, counters) as calls,
    ):
        await server.kill()
        call = calls.open(started("s"))
        call.feed(Audio(chunk(0)))
        await calls.drain(0.0)
        assert calls.count == 1
        assert not calls.redis_up
    assert calls.count == 0
    assert "call s: not all of its audio is appended" in caplog.text


async def test_key_of_another_type_ends_one_call_only(calls: Calls, bus: Bus) -> None:
    await bus.redis.sadd(bus.keys.audio("0", "odd"), "a")
    odd, call = calls.open(started("odd")), calls.open(started("s"))
    for each in (odd, call):
        each.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the chunk of the other call")
    await eventually(lambda: odd.over, "the end of the odd one")


async def test_internal_error_ends_one_call_only(
    calls: Calls, bus: Bus, counters: IngestCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = calls.open(started("s"))
    bad = calls.open(started("bad"))

    def fail(self: Call) -> None:
        if self is bad:
            raise ZeroDivisionError

    monkeypatch.setattr(Call, "_wait_for_work", _then(Call._wait_for_work, fail))
    bad.feed(Audio(chunk(0)))
    await eventually(lambda: counters.calls_ended["internal"], "the internal error")
    call.feed(Audio(chunk(0)))
    await eventually(lambda: bus.entries("s"), "the chunk of the other call")
    assert counters.internal_errors == 1


async def test_unexpected_error_of_an_append_ends_one_call_only(
    calls: Calls, bus: Bus, counters: IngestCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Wires.exchange

    async def fail(self: Wires, commands: bytes, count: int) -> Any:
        if bus.keys.audio("0", "bad").encode() in commands:
            raise ZeroDivisionError
        return await exchange(self, commands, count)

    monkeypatch.setattr(Wires, "exchange", fail)
    bad, *others = (calls.open(started(name)) for name in ("bad", "s-1", "s-2"))
    for at in range(2):
        for call in (bad, *others):
            call.feed(Audio(chunk(at)))
    for call in (bad, *others):
        call.feed(Ended())
    await until_done(calls)
    assert counters.calls_ended["internal"] == 1
    assert counters.calls_ended["ended"] == 2
    for name in ("s-1", "s-2"):
        assert [entry.seq for entry in await bus.entries(name)] == [0, 1, None]


async def test_call_with_an_internal_error_takes_no_more_audio(
    calls: Calls, counters: IngestCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: AppendPipeline, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(AppendPipeline, "append", fail)
    call = calls.open(started("s"))
    call.feed(Audio(chunk(0)))
    await until_done(calls)
    call.feed(Audio(chunk(1)))
    assert call.over
    assert counters.frames_unused == 1
    assert counters.calls_ended["internal"] == 1


def _then(work: Any, check: Any) -> Any:
    async def both(self: Call) -> None:
        check(self)
        await work(self)

    return both
