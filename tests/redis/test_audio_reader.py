"""The audio reader delivers each session its own entries, whatever other sessions do."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.harness import ON_CLUSTER_TOO
from worker.bus import audio_reader as module
from worker.bus.audio_reader import AudioReader, Entries
from worker.bus.client.connection import RedisHealth
from worker.core.polling import PollSchedule
from worker.telemetry.logs import SessionName


class Listener:
    """A session that only receives."""

    def __init__(self, prefix: str, number: int) -> None:
        self.name = SessionName(str(number), None)
        self.lane = "0" if number % 2 else "1"
        self.audio_key = f"{prefix}:{{{self.lane}}}:audio:{number}".encode()
        self.cursor = "0-0"
        self.rewinds = 0
        self.wants_audio = True
        self.poll_schedule = PollSchedule(time.monotonic())
        self.chunk_s = 0.1
        self.received: list[bytes] = []
        self.fault: ResponseError | None = None
        self.changed = anyio.Event()

    def feed(self, entries: Entries, now: float) -> None:
        assert now > 0
        for entry, row in entries:
            self.cursor = entry.decode()
            self.received.append(row[row.index(b"audio") + 1])
        self.changed.set()

    def on_unreadable_key(self, error: ResponseError) -> None:
        self.fault = error
        self.wants_audio = False
        self.changed.set()

    def fail(self) -> None:
        self.fault = ResponseError("crashed")
        self.wants_audio = False
        self.changed.set()

    async def until(self, received: list[bytes]) -> None:
        with anyio.fail_after(30):
            while self.received != received:
                self.changed = anyio.Event()
                await self.changed.wait()


@asynccontextmanager
async def reading(as_worker: Redis, *listeners: Listener) -> AsyncIterator[AudioReader]:
    reader = AudioReader(as_worker, RedisHealth())
    for listener in listeners:
        reader.add(listener)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        yield reader
        tasks.cancel_scope.cancel()


@pytest.fixture
def listeners(
    bus_prefix: str, expected_leftovers: list[str], request: pytest.FixtureRequest
) -> list[Listener]:
    expected_leftovers.append("{?}:audio:*")
    return [Listener(bus_prefix, number) for number in range(getattr(request, "param", 4))]


@ON_CLUSTER_TOO
@pytest.mark.parametrize("listeners", [1, 4, 130], indirect=True, ids=["one", "few", "many"])
async def test_each_session_receives_its_own_entries(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    async with reading(as_worker, *listeners):
        for round_ in range(3):
            for number, listener in enumerate(listeners):
                await redis.xadd(listener.audio_key, {"audio": f"{number}-{round_}"})
        for number, listener in enumerate(listeners):
            await listener.until([f"{number}-{round_}".encode() for round_ in range(3)])


@pytest.mark.parametrize("listeners", [4, 40], indirect=True, ids=["few", "many"])
async def test_paused_session_is_not_read(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    paused, keen = listeners[1], listeners[3]
    paused.wants_audio = False
    async with reading(as_worker, *listeners) as reader:
        for listener in (paused, keen):
            await redis.xadd(listener.audio_key, {"audio": "a"})
        await keen.until([b"a"])
        assert paused.received == []
        paused.wants_audio = True
        reader.poll_now(paused)
        await paused.until([b"a"])


@ON_CLUSTER_TOO
async def test_key_of_another_type_fails_only_its_own_session(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    bad, good = listeners[1], listeners[3]
    await redis.set(bad.audio_key, "ended")
    await redis.xadd(good.audio_key, {"audio": "a"})
    async with reading(as_worker, bad, good):
        await good.until([b"a"])
        await redis.xadd(good.audio_key, {"audio": "b"})
        await good.until([b"a", b"b"])
    assert "WRONGTYPE" in str(bad.fault)
    assert good.fault is None


async def test_error_without_a_key_is_waited_out(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    odd, good = listeners[1], listeners[3]
    odd.cursor = "no id"  # "Invalid stream ID": an error that the reader does not know
    for listener in (odd, good):
        await redis.xadd(listener.audio_key, {"audio": "a"})
    async with reading(as_worker, odd, good):
        await good.until([b"a"])
        odd.cursor = "0-0"
        await odd.until([b"a"])
    assert odd.fault is None


async def test_entries_read_before_a_rewind_are_discarded(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    listener = listeners[1]
    async with reading(as_worker, listener):
        await redis.xadd(listener.audio_key, {"audio": "a"})
        await listener.until([b"a"])
        listener.cursor = "0-0"
        listener.rewinds += 1
        listener.received = []
        await redis.xadd(listener.audio_key, {"audio": "b"})
        await listener.until([b"a", b"b"])


async def test_large_entries_are_read_few_at_a_time(
    redis: Redis, as_worker: Redis, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 100_000)
    chunks = [bytes([number]) * 60_000 for number in range(6)]
    async with reading(as_worker, *listeners[:3]):
        for chunk in chunks:
            for listener in listeners[:3]:
                await redis.xadd(listener.audio_key, {"audio": chunk})
        for listener in listeners[:3]:
            await listener.until(chunks)


@pytest.mark.parametrize("listeners", [4, 40], indirect=True, ids=["few", "many"])
async def test_removed_session_receives_no_more(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    gone, there = listeners[1], listeners[3]
    async with reading(as_worker, *listeners) as reader:
        reader.remove(gone)
        reader.poll_now(gone)
        for listener in (gone, there):
            await redis.xadd(listener.audio_key, {"audio": "a"})
        await there.until([b"a"])
    assert gone.received == []


async def test_crash_of_one_session_affects_no_other(
    redis: Redis, as_worker: Redis, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = listeners[1], listeners[3]

    def crash(entries: Entries, now: float) -> None:
        raise ZeroDivisionError("a fault put in by the test")

    monkeypatch.setattr(bad, "feed", crash)
    async with reading(as_worker, bad, good):
        for listener in (bad, good):
            await redis.xadd(listener.audio_key, {"audio": "a"})
        await good.until([b"a"])
        await redis.xadd(good.audio_key, {"audio": "b"})
        await good.until([b"a", b"b"])
    assert str(bad.fault) == "crashed"


@pytest.mark.parametrize("listeners", [40], indirect=True)
async def test_due_session_is_read_once_it_wants_audio(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    paused, keen = listeners[1], listeners[3]
    paused.wants_audio = False
    async with reading(as_worker, *listeners):
        for listener in (paused, keen):
            await redis.xadd(listener.audio_key, {"audio": "a"})
        await keen.until([b"a"])
        paused.wants_audio = True
        await paused.until([b"a"])


@pytest.mark.parametrize("listeners", [40], indirect=True)
async def test_poll_on_request_is_before_the_schedule(
    redis: Redis, as_worker: Redis, listeners: list[Listener]
) -> None:
    """Reads of one lane follow one another, so those of another session show the rounds."""
    listener, other = listeners[1], listeners[3]
    assert listener.lane == other.lane

    async def two_rounds() -> None:
        for _ in range(2):
            expected = [*other.received, b"x"]
            await redis.xadd(other.audio_key, {"audio": "x"})
            await other.until(expected)

    async with reading(as_worker, *listeners) as reader:
        await redis.xadd(listener.audio_key, {"audio": "a"})
        await listener.until([b"a"])
        listener.wants_audio = False
        await two_rounds()  # no read of the session is in flight any more
        listener.poll_schedule.next_at = time.monotonic() + 3_600.0
        reader._polls.put(listener)
        listener.wants_audio = True
        await redis.xadd(listener.audio_key, {"audio": "b"})
        await two_rounds()
        assert listener.received == [b"a"]
        reader.poll_now(listener)
        await listener.until([b"a", b"b"])


@pytest.mark.parametrize("listeners", [40], indirect=True)
async def test_later_session_of_the_same_key_replaces_the_first(
    redis: Redis, as_worker: Redis, listeners: list[Listener], bus_prefix: str
) -> None:
    first, second = listeners[1], Listener(bus_prefix, 1)
    async with reading(as_worker, *listeners) as reader:
        reader.add(second)
        reader.remove(first)
        await redis.xadd(second.audio_key, {"audio": "a"})
        await second.until([b"a"])
    assert first.received == []


@pytest.mark.parametrize("listeners", [4, 40], indirect=True, ids=["few", "many"])
async def test_replaced_session_continues_after_the_later_one(
    redis: Redis, as_worker: Redis, listeners: list[Listener], bus_prefix: str
) -> None:
    first, second, third = listeners[1], Listener(bus_prefix, 1), Listener(bus_prefix, 1)
    async with reading(as_worker, *listeners) as reader:
        reader.add(second)
        reader.add(third)
        reader.remove(second)
        await redis.xadd(first.audio_key, {"audio": "a"})
        await third.until([b"a"])
        reader.remove(third)
        await first.until([b"a"])
    assert second.received == []


@pytest.mark.parametrize("listeners", [40], indirect=True)
async def test_restarted_reader_polls_every_session(
    redis: Redis, as_worker: Redis, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal error ends all reads; their sessions are not in the queue then."""
    reader = AudioReader(as_worker, RedisHealth())
    for listener in listeners:
        reader.add(listener)
    with monkeypatch.context() as patch:
        patch.setattr(AudioReader, "_exchange", None)
        with pytest.raises(ExceptionGroup):
            await reader.run()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        for listener in listeners:
            await redis.xadd(listener.audio_key, {"audio": "a"})
        for listener in listeners:
            await listener.until([b"a"])
        tasks.cancel_scope.cancel()


@ON_CLUSTER_TOO
@pytest.mark.parametrize("listeners", [300], indirect=True)
async def test_reads_in_flight_keep_each_sessions_order(
    redis: Redis, as_worker: Redis, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewinds and slow replies change nothing: each entry arrives once, in its place."""
    monkeypatch.setattr(module, "MIN_KEYS_PER_READ", 8)
    random = Random(1)
    in_flight: set[bytes] = set()
    reads = most_reads = 0
    exchange = AudioReader._exchange

    async def watched(reader: AudioReader, command: tuple[Any, ...]) -> Any:
        nonlocal reads, most_reads
        streams = command[command.index("STREAMS") + 1 :]
        keys = {*streams[: len(streams) // 2]}
        assert not keys & in_flight, "a session is in one read at a time"
        in_flight.update(keys)
        reads += 1
        most_reads = max(most_reads, reads)
        await anyio.sleep(random.uniform(0, 0.01))
        reply = await exchange(reader, command)
        await anyio.sleep(random.uniform(0, 0.01))
        in_flight.difference_update(keys)
        reads -= 1
        return reply

    monkeypatch.setattr(AudioReader, "_exchange", watched)
    entries = 20
    async with reading(as_worker, *listeners):
        for number in range(entries):
            async with redis.pipeline(transaction=False) as pipe:
                for listener in listeners:
                    pipe.xadd(listener.audio_key, {"audio": b"%d" % number}, id=f"{number + 1}-0")
                await pipe.execute()
            for listener in random.sample(listeners, 20):
                kept = random.randint(0, len(listener.received))
                listener.cursor = f"{kept}-0"
                listener.rewinds += 1
                del listener.received[kept:]
            await anyio.sleep(0.01)
        for listener in listeners:
            await listener.until([b"%d" % number for number in range(entries)])
    assert most_reads >= module.MAX_READS_IN_FLIGHT
