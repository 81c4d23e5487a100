"""The iterators over turn events: positions, outages, lost writes, trimming, groups."""

import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from itertools import count
from typing import Any, cast

import anyio
import pytest
from redis.asyncio import Redis as AnyRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas import Keys, encode_event
from schemas.turns import Event, SessionEnded, TurnStart, event_type
from tests.support.acl import GuardedRedis, as_user
from tests.support.polling import PATIENCE_S
from worker.consume import MAX_RUNS, Received, _Sequence, connect, events, group_events
from worker.errors import TurnbusError

KEYS = Keys()
STREAM = KEYS.turns("0")


@pytest.fixture
async def server() -> AsyncIterator[GuardedRedis]:
    async with GuardedRedis.start(append_only=True) as server:
        yield server


@pytest.fixture
async def admin(server: GuardedRedis) -> AsyncIterator[AnyRedis]:
    async with connect(server.url) as client:
        yield client


@pytest.fixture
async def bus(server: GuardedRedis) -> AsyncIterator[AnyRedis]:
    async with connect(as_user(server.url, "consumer")) as client:
        yield client


def event(seq: int, session: str = "s", kind: type[Event] = TurnStart) -> Event:
    base: dict[str, Any] = {
        "session": session, "run": "1-1", "seq": seq, "at": 1.0, "audio_ms": 0,
        "provider": "p", "request_id": "", "connection": 1,
    }  # fmt: skip
    if kind is SessionEnded:
        return SessionEnded(**base, reason="end", turns=1)
    return TurnStart(**base, turn=seq)


async def publish(
    redis: AnyRedis, *published: Event, entry_id: str = "*", stream: str = STREAM
) -> str:
    added: Any = b""
    for each in published:
        fields: Any = {
            "session": each.session, "type": event_type(each), "event": encode_event(each),
        }  # fmt: skip
        added = await redis.xadd(stream, fields, id=entry_id)
    return cast("str", added.decode())


async def take(source: AsyncIterator[Received], count: int) -> list[Received]:
    """Return the next events. The last one stays unacknowledged."""
    with anyio.fail_after(PATIENCE_S):
        return [await anext(source) for _ in range(count)]


def iterate(source: AsyncIterator[Received]) -> "aclosing[AsyncGenerator[Received]]":
    return aclosing(cast("AsyncGenerator[Received]", source))


def lose_reply(
    monkeypatch: pytest.MonkeyPatch,
    redis: AnyRedis,
    command: str,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    *,
    after: int = 0,
    hidden: bool = False,
) -> None:
    """Lose the reply to one command, `after` others; a `hidden` loss is repeated by the client."""
    call, calls = getattr(redis, command), count()

    async def lossy(*args: Any, **options: Any) -> Any:
        reply = await call(*args, **options) if meanwhile is None else None
        if next(calls) != after:
            return reply if meanwhile is None else await call(*args, **options)
        if meanwhile is not None:
            await meanwhile()
        if hidden:
            return await call(*args, **options)
        raise RedisConnectionError("the reply is lost")

    monkeypatch.setattr(redis, command, lossy)


def seqs(received: list[Received]) -> list[int]:
    return [each.event.seq for each in received]


async def test_oldest_yields_all_kept(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, *map(event, range(1, 251)))
    async with iterate(events(bus, start="oldest")) as source:
        received = await take(source, 250)
    assert seqs(received) == [*range(1, 251)]
    assert not any(each.repeated or each.missing or each.trimmed for each in received)


async def test_next_skips_kept_and_misses_none(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1))
    async with iterate(events(bus, start="next")) as source, anyio.create_task_group() as tasks:
        received: list[Received] = []

        async def read() -> None:
            received.extend(await take(source, 5))

        tasks.start_soon(read)
        newest = 1
        while not received:
            newest += 1
            await publish(admin, event(newest))
            await anyio.sleep(0.01)
    first = received[0].event.seq
    assert first > 1
    assert seqs(received) == [*range(first, first + 5)]


async def test_position_continues_after_stored_entry(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1), event(2), event(3))
    async with iterate(events(bus, start="oldest")) as source:
        stored = (await take(source, 2))[-1].entry_id
    async with iterate(events(bus, start="next", position=stored)) as source:
        (received,) = await take(source, 1)
    assert (received.event.seq, received.trimmed) == (3, False)


@pytest.mark.parametrize("position", ["", "$", "x-1", "1-x"])
async def test_invalid_position_is_an_error(bus: AnyRedis, position: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        await anext(events(bus, position=position))


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("legacy", [True, False])
async def test_plain_clients_of_redis_py_work(
    server: GuardedRedis, admin: AnyRedis, protocol: int, legacy: bool
) -> None:
    await publish(admin, event(1), event(2))
    url = as_user(server.url, "consumer")
    async with AnyRedis.from_url(url, protocol=protocol, legacy_responses=legacy) as client:
        async with iterate(events(client, start="oldest")) as source:
            assert seqs(await take(source, 2)) == [1, 2]
        async with iterate(group_events(client, "g", "c", start="oldest")) as source:
            assert seqs(await take(source, 2)) == [1, 2]
        async with iterate(group_events(client, "g", "d", min_idle_s=0)) as source:
            assert seqs(await take(source, 1)) == [2]


async def test_client_that_decodes_is_an_error(server: GuardedRedis) -> None:
    async with AnyRedis.from_url(server.url, decode_responses=True) as client:
        with pytest.raises(TurnbusError, match="without decode_responses=True"):
            await anext(events(client))


async def test_missing_permission_is_an_error(server: GuardedRedis) -> None:
    async with connect(as_user(server.url, "producer")) as client:
        for source in (events(client), group_events(client, "g", "c")):
            with pytest.raises(TurnbusError, match="Redis rejects this consumer"):
                await anext(source)


async def test_wrong_password_is_an_error(server: GuardedRedis) -> None:
    async with connect(server.url.replace("admin:", "admin:wrong-")) as client:
        with pytest.raises(TurnbusError, match="Redis rejects this consumer"):
            await anext(events(client))


async def test_reading_continues_after_an_outage(
    server: GuardedRedis, admin: AnyRedis, bus: AnyRedis
) -> None:
    await publish(admin, event(1))
    async with iterate(events(bus, start="oldest")) as source:
        await take(source, 1)
        await server.kill()
        async with anyio.create_task_group() as tasks:
            received: list[Received] = []

            async def read() -> None:
                received.extend(await take(source, 2))

            tasks.start_soon(read)
            await anyio.sleep(0.2)
            await server.restart()
            await publish(admin, event(2), event(3))
    assert seqs(received) == [2, 3]
    assert not any(each.repeated or each.missing or each.trimmed for each in received)


async def test_numbers_after_a_rollback_are_repeated(
    server: GuardedRedis, admin: AnyRedis, bus: AnyRedis
) -> None:
    """The server loses its last writes, and its clock is behind."""
    for seq in range(1, 4):
        await publish(admin, event(seq), entry_id=f"{seq * 10}-0")
    async with iterate(events(bus, start="oldest")) as source:
        await take(source, 3)
        await server.kill()
        async with anyio.create_task_group() as tasks:
            received: list[Received] = []

            async def read() -> None:
                received.extend(await take(source, 4))

            tasks.start_soon(read)
            await anyio.sleep(0.1)
            for file in server.directory.glob("appendonlydir/*"):
                file.unlink()
            await server.restart()
            await publish(admin, event(2), entry_id="11-0")
            for at, seq in enumerate((3, 4, 6)):
                await publish(admin, event(seq), entry_id=f"{12 + at}-0")
    marks = [(each.event.seq, each.repeated, each.missing) for each in received]
    assert marks == [(2, True, 0), (3, True, 0), (4, False, 0), (6, False, 1)]


async def test_position_ahead_of_the_stream_goes_back(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1), entry_id="10-0")
    async with iterate(events(bus, position="99-0")) as source, anyio.create_task_group() as tasks:
        received: list[Received] = []

        async def read() -> None:
            received.extend(await take(source, 1))

        tasks.start_soon(read)
        seq = 2
        while not received:
            await publish(admin, event(seq), entry_id=f"{10 + seq}-0")
            seq += 1
            await anyio.sleep(0.01)


async def test_trimmed_position_marks_the_first_event(admin: AnyRedis, bus: AnyRedis) -> None:
    ids = [await publish(admin, event(seq)) for seq in range(1, 6)]
    await admin.xtrim(STREAM, maxlen=2, approximate=False)
    async with iterate(events(bus, position=ids[0])) as source:
        received = await take(source, 2)
    assert [(each.event.seq, each.trimmed) for each in received] == [(4, True), (5, False)]
    async with iterate(events(bus, position=ids[3])) as source:
        assert not (await take(source, 1))[0].trimmed


async def test_emptied_stream_marks_the_next_event(admin: AnyRedis, bus: AnyRedis) -> None:
    ids = [await publish(admin, event(seq), entry_id=f"{seq}-0") for seq in range(1, 3)]
    await admin.xtrim(STREAM, maxlen=0, approximate=False)
    await publish(admin, event(3), entry_id="3-0")
    async with iterate(events(bus, position=ids[0])) as source:
        assert (await take(source, 1))[0].trimmed


async def test_unknown_events_are_skipped_and_counted(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1))
    later = encode_event(event(2)).replace(b"turn.start", b"turn.sung")
    await admin.xadd(STREAM, {"session": "s", "type": "turn.sung", "event": later})
    await admin.xadd(STREAM, {"of": "another program"})
    await publish(admin, event(3), event(5))
    async with iterate(events(bus, start="oldest")) as source:
        received = await take(source, 3)
    assert [(each.event.seq, each.missing) for each in received] == [(1, 0), (3, 0), (5, 1)]


async def test_own_stream_of_a_session_ends(admin: AnyRedis, bus: AnyRedis) -> None:
    stream = KEYS.session_turns("0", "s")
    await publish(admin, event(1), event(2), stream=stream)
    await publish(admin, event(3, kind=SessionEnded), stream=stream)
    with anyio.fail_after(PATIENCE_S):
        received = [each async for each in events(bus, session="s", start="oldest")]
        again = events(bus, session="s", position=received[-1].entry_id)
        assert [each async for each in again] == []
    assert seqs(received) == [1, 2, 3]


async def pending(redis: AnyRedis, group: str = "g") -> int:
    found: Any = await redis.xpending(STREAM, group)
    return int(found["pending"])


async def test_group_acknowledges_after_the_body(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1), event(2), event(3))

    async def fail_at_two() -> None:
        async for received in group_events(bus, "g", "c", start="oldest"):
            if received.event.seq == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_at_two()
    assert await pending(admin) == 2
    async with iterate(group_events(bus, "g", "c")) as source:
        received_again = await take(source, 2)
    assert [(each.event.seq, each.repeated) for each in received_again] == [(2, True), (3, True)]


async def test_cancelled_body_is_not_acknowledged(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1))
    with anyio.CancelScope() as scope:
        async for _ in group_events(bus, "g", "c", start="oldest"):
            scope.cancel()
            await anyio.sleep_forever()
    assert await pending(admin) == 1


async def test_group_takes_over_from_killed_consumer(
    server: GuardedRedis, admin: AnyRedis, bus: AnyRedis
) -> None:
    await publish(admin, *map(event, range(1, 41)))
    code = f"""
import asyncio
from worker.consume import connect, group_events
async def main():
    async with connect({as_user(server.url, "consumer")!r}) as redis:
        async for received in group_events(redis, "g", "killed", start="oldest"):
            if received.event.seq == 3:
                print("three", flush=True)
                await asyncio.sleep(3600)
asyncio.run(main())
"""
    async with await anyio.open_process([sys.executable, "-c", code], stderr=None) as process:
        assert process.stdout is not None
        with anyio.fail_after(PATIENCE_S):
            assert (await process.stdout.receive()).startswith(b"three")
        process.kill()
    left = await pending(admin)
    async with iterate(group_events(bus, "g", "other", min_idle_s=0.2)) as source:
        received = await take(source, 38)
    assert sorted(seqs(received)) == [*range(3, 41)]
    assert sum(each.repeated for each in received) >= left > 0


async def test_slow_body_keeps_its_events_once(admin: AnyRedis, bus: AnyRedis) -> None:
    """A batch that another consumer took over in part is not delivered twice."""
    await publish(admin, *map(event, range(1, 6)))
    async with (
        iterate(group_events(bus, "g", "slow", start="oldest", min_idle_s=0.02)) as slow,
        iterate(group_events(bus, "g", "other", min_idle_s=0)) as other,
    ):
        (first,) = await take(slow, 1)
        taken = await take(other, 5)
        await publish(admin, event(6))
        await anyio.sleep(0.05)
        following = await take(slow, 2)
    assert (seqs([first]), seqs(taken)) == ([1], [1, 2, 3, 4, 5])
    assert seqs(following) == [5, 6], "the other consumer never acknowledged its last event"


async def test_lost_group_is_created_again(
    admin: AnyRedis, bus: AnyRedis, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(admin, event(1), event(2))
    async with iterate(group_events(bus, "g", "c", start="oldest")) as source:
        await take(source, 2)
        await admin.xgroup_destroy(STREAM, "g")
        await publish(admin, event(3))
        assert seqs(await take(source, 1)) == [3]
    assert "Redis lost the group g" in caplog.text


async def test_group_survives_loss_of_all_data(
    server: GuardedRedis, admin: AnyRedis, bus: AnyRedis
) -> None:
    await publish(admin, event(1))
    async with iterate(group_events(bus, "g", "c", start="oldest")) as source:
        await take(source, 1)
        await admin.flushall()
        await publish(admin, event(1), event(2), entry_id="*")
        assert seqs(await take(source, 2)) == [1, 2]


async def test_pending_events_that_were_trimmed_are_marked(admin: AnyRedis, bus: AnyRedis) -> None:
    await publish(admin, event(1), event(2), event(3))
    async with iterate(group_events(bus, "g", "c", start="oldest")) as source:
        await take(source, 1)
    await admin.xtrim(STREAM, maxlen=1, approximate=False)
    async with iterate(group_events(bus, "g", "c")) as source:
        (received,) = await take(source, 1)
    assert (received.event.seq, received.trimmed) == (3, True)
    assert await pending(admin) == 1


async def test_rollback_during_the_body_goes_back(
    server: GuardedRedis, admin: AnyRedis, bus: AnyRedis
) -> None:
    """The client reconnects without an error, and ids beyond the position exist again."""
    for seq in range(1, 4):
        await publish(admin, event(seq), entry_id=f"{seq * 10}-0")
    async with iterate(events(bus, start="oldest")) as source:
        await take(source, 3)
        await server.kill()
        for file in server.directory.glob("appendonlydir/*"):
            file.unlink()
        await server.restart()
        for entry_id, seq in (("10-0", 1), ("11-0", 2), ("12-0", 3), ("31-0", 4)):
            await publish(admin, event(seq), entry_id=entry_id)
        received = await take(source, 3)
    marks = [(each.event.seq, each.repeated) for each in received]
    assert marks == [(2, True), (3, True), (4, False)]


async def test_events_trimmed_during_an_outage_are_marked(
    admin: AnyRedis, bus: AnyRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(admin, event(1))
    async with iterate(events(bus, start="oldest")) as source:
        await take(source, 1)

        async def trim() -> None:
            await publish(admin, event(2), event(3), event(1, session="new"))
            await admin.xtrim(STREAM, maxlen=1, approximate=False)

        lose_reply(monkeypatch, bus, "xread", trim)
        (received,) = await take(source, 1)
    assert (received.event.session, received.trimmed) == ("new", True)


@pytest.mark.parametrize("hidden", [False, True], ids=["error", "repeated by the client"])
async def test_lost_reply_keeps_the_order_of_a_group(
    admin: AnyRedis, bus: AnyRedis, monkeypatch: pytest.MonkeyPatch, *, hidden: bool
) -> None:
    await publish(admin, *map(event, range(1, 41)))
    lose_reply(monkeypatch, bus, "xreadgroup", after=1, hidden=hidden)
    async with iterate(group_events(bus, "g", "c", start="oldest")) as source:
        assert seqs(await take(source, 40)) == [*range(1, 41)]
        assert await pending(admin) == 1


async def test_abandoned_events_that_were_trimmed_are_marked(
    admin: AnyRedis, bus: AnyRedis
) -> None:
    await publish(admin, event(1), event(2), event(3))
    async with iterate(group_events(bus, "g", "killed", start="oldest")) as source:
        await take(source, 1)
    await admin.xtrim(STREAM, maxlen=1, approximate=False)
    async with iterate(group_events(bus, "g", "other", min_idle_s=0)) as source:
        (received,) = await take(source, 1)
    assert (received.event.seq, received.trimmed) == (3, True)


async def test_events_trimmed_before_their_group_read_them_are_marked(
    admin: AnyRedis, bus: AnyRedis
) -> None:
    await publish(admin, event(1))
    async with iterate(group_events(bus, "g", "c", start="oldest")) as source:
        await take(source, 1)
        await publish(admin, event(2))
        await take(source, 1)  # acknowledges the first
    async with iterate(group_events(bus, "g", "c")) as source:
        assert not (await take(source, 1))[0].trimmed
    await publish(admin, event(3), event(4), event(5))
    rows: Any = await admin.xrange(STREAM)
    await admin.xack(STREAM, "g", *[entry_id for entry_id, _ in rows])
    await admin.xtrim(STREAM, maxlen=1, approximate=False)
    async with iterate(group_events(bus, "g", "c")) as source:
        (received,) = await take(source, 1)
    assert (received.event.seq, received.trimmed) == (5, True)


def test_remembered_runs_are_bounded() -> None:
    sequence = _Sequence()
    for run in range(MAX_RUNS + 1):
        assert sequence.observe("s", str(run), 5) == (False, 0)
    assert sequence.observe("s", str(MAX_RUNS), 5) == (True, 0)
    assert sequence.observe("s", "0", 5) == (False, 0)


def test_consume_imports_no_settings_or_telemetry() -> None:
    code = (
        "import sys, worker.consume; "
        "print(*(m for m in sys.modules if m.startswith(('worker.settings', 'worker.telemetry', "
        "'prometheus_client', 'opentelemetry.exporter', 'websockets', 'worker.stt'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert result.stdout.strip() == b""


@pytest.mark.parametrize("bus_kind", ["cluster", "sentinel"])
async def test_events_of_each_lane_are_read(redis: AnyRedis, bus_prefix: str) -> None:
    keys = Keys(bus_prefix)
    for lane in ("0", "1", "2"):
        stream = keys.turns(lane)
        for _ in range(2):  # the group is created once
            await publish(redis, event(1), stream=stream)
            source = group_events(redis, "g", "c", lane=lane, prefix=bus_prefix, start="oldest")
            async with iterate(source) as iterator:
                await take(iterator, 1)
        async with iterate(events(redis, lane=lane, prefix=bus_prefix, start="oldest")) as iterator:
            assert seqs(await take(iterator, 2)) == [1, 1]
        await redis.delete(stream)
