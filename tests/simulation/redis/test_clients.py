"""Unmodified clients on the model, on a real event loop: redis-py, the worker's bus, a worker."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas.keys import Keys
from schemas.turns import TurnUpdate
from tests.redis.claiming import claim
from tests.simulation.redis.model import ScriptRun
from tests.simulation.redis.running import harness_on, listening, new_server
from tests.simulation.redis.server import RedisServer, calls_script
from tests.support.harness import PCM16, check_order, words
from worker.bus.client.connection import connect, is_outage
from worker.bus.ownership import SessionLeases
from worker.bus.permissions import find_missing
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

KEYS = Keys("stt")
FIELDS: dict[Any, Any] = {"session": "call-1", "encoding": "pcm_s16le", "sample_rate": "16000"}


@pytest.fixture
def server() -> RedisServer:
    return new_server()


@pytest.fixture
async def url(server: RedisServer) -> AsyncIterator[str]:
    async with listening(server) as url:
        yield url


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    async with connect(url) as client:
        yield client


async def test_every_command_of_a_worker_is_known(redis: Redis, server: RedisServer) -> None:
    assert not await find_missing(redis, KEYS)
    assert server.model.execute("DBSIZE") == 0


async def test_session_leases_between_two_owners(redis: Redis) -> None:
    one, two = (SessionLeases(redis, KEYS, name, f"nonce-{name}") for name in ("one", "two"))
    await one.ensure_group()
    entry: Any = await redis.xadd(KEYS.sessions, FIELDS)
    (owned,) = await one.read_new(1, 10)
    assert owned.entry_id == entry.decode()
    assert (await claim(one, owned)).verdict == "new"
    assert not (await one.heartbeat([(owned.entry_id, 1)])).missing
    assert not (await two.take_over(10, 60_000)).owned
    (taken,) = (await two.take_over(10, 0)).owned
    assert (await claim(two, taken)).verdict == "taken"
    assert (await claim(one, owned)).verdict == "stale"
    assert (await one.heartbeat([(owned.entry_id, 1)])).taken_by_others == {owned.entry_id}
    await two.complete(taken.entry_id)
    assert await redis.xlen(KEYS.sessions) == 0


async def test_blocking_read_ends_with_the_next_entry(url: str, redis: Redis) -> None:
    found: list[Any] = []

    async def read() -> None:
        async with connect(url) as reader:
            found.append(await reader.xread({"a": "$"}, block=60_000))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while not found:
            await redis.xadd("a", {"n": "1"})
            await anyio.sleep(0.01)
    assert found[0][0][0] == b"a"


async def test_blocking_group_read_ends_with_its_group(url: str, redis: Redis) -> None:
    await redis.xgroup_create("a", "g", id="0", mkstream=True)
    errors: list[str] = []

    async def read() -> None:
        async with connect(url) as reader:
            try:
                await reader.xreadgroup("g", "me", {"a": ">"}, block=60_000)
            except ResponseError as error:
                errors.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while not (await redis.xinfo_groups("a"))[0]["consumers"]:
            await anyio.sleep(0.01)
        await redis.delete("a")
    assert errors[0].startswith("NOGROUP")


async def test_lost_reply_resets_after_the_script_ran(redis: Redis, server: RedisServer) -> None:
    runs: list[ScriptRun] = []
    server.model.on_script = runs.append
    one = SessionLeases(redis, KEYS, "one", "nonce")
    await one.ensure_group()
    await redis.xadd(KEYS.sessions, FIELDS)
    (owned,) = await one.read_new(1, 10)
    await claim(one, owned)
    server.lose_next_reply(calls_script("claim"))
    with pytest.raises(RedisConnectionError):
        await claim(one, owned)
    assert [run.name for run in runs] == ["claim", "claim"]
    assert (await claim(one, owned)).verdict == "taken"


async def test_killed_server_comes_back_from_its_log(redis: Redis, server: RedisServer) -> None:
    for number in range(10):
        await redis.xadd("a", {"n": str(number)})
    server.kill()
    with pytest.raises(RedisConnectionError):
        await redis.xlen("a")
    server.restart()
    assert await redis.xlen("a") == 10
    server.restart(lost_writes=3)
    assert server.model.execute("XLEN", "a") == 7
    server.model.execute("XADD", "a", "*", "n", "again")
    server.restart()
    assert server.model.execute("XLEN", "a") == 8


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("full", OutOfMemoryError),
        ("read_only", ReadOnlyError),
        ("loading", BusyLoadingError),
        ("lacks_replicas", ResponseError),
    ],
)
async def test_clients_see_faults_as_outages(
    redis: Redis, server: RedisServer, fault: str, error: type[Exception]
) -> None:
    setattr(server.faults, fault, True)
    with pytest.raises(error) as raised:
        await redis.xadd("a", {"n": "1"})
    assert is_outage(raised.value)
    assert (await redis.info("persistence"))["loading"] == int(fault == "loading")
    if fault == "loading":
        with pytest.raises(BusyLoadingError):
            await redis.ping()
    else:
        assert await redis.xlen("a") == 0


async def test_worker_completes_a_session(url: str, server: RedisServer, stt: TurnsServer) -> None:
    sound = (
        synthesize_words([1, 2, 3], PCM16)
        + synthesize_silence(1_000, PCM16)
        + synthesize_words([4, 5], PCM16)
    )
    async with harness_on(url, stt.url) as harness, harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", sound, pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3, 4, 5]
    assert server.model.execute("XLEN", KEYS.sessions) == 0


async def test_lost_reply_to_a_commit_repeats_no_event(
    url: str, server: RedisServer, stt: TurnsServer
) -> None:
    runs: list[ScriptRun] = []
    server.model.on_script = runs.append
    async with (
        harness_on(url, stt.url) as harness,
        harness.worker(),
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", synthesize_words(range(9), PCM16))
        await harness.until("call-1", TurnUpdate, 1)
        server.lose_next_reply(calls_script("commit"))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(9)]
    commits = [run.args for run in runs if run.name == "commit"]
    assert len({tuple(args) for args in commits}) < len(commits), "one was sent again"
