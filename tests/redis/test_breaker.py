"""The breakers that workers share on Redis: opening, probes, expiry, and a Redis that is away."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from schemas.keys import Keys
from tests.redis.contracts import contract_of
from tests.support.acl import GuardedRedis, as_user
from tests.support.embedded_cluster import EmbeddedCluster, client, execute
from tests.support.harness import Place
from tests.support.polling import eventually
from worker.bus import breaker as module
from worker.bus import scripts
from worker.bus.breaker import Breakers
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import connect
from worker.core.breaker import MAX_FAILURES, SILENCE_S, BreakerState

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN
PROBE_DUE, PROBING = BreakerState.PROBE_DUE, BreakerState.PROBING
NAMES = ("cartesia", "flux")
LONG_S = 600


@pytest.fixture
def keys(bus_prefix: str) -> Keys:
    return Keys(bus_prefix)


@pytest.fixture(autouse=True)
def long_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every time in Redis so long that none ends during a test."""
    for name in ("WINDOW_S", "FIRST_PROBE_S", "PROBE_LEASE_S"):
        monkeypatch.setattr(module, name, LONG_S)
    monkeypatch.setattr(module, "MAX_PROBE_S", 10 * LONG_S)


def worker_of(redis: Redis, keys: Keys, name: str) -> Breakers:
    """Return the breakers of one worker, whose own clock stands still."""
    return Breakers(redis, keys, name, NAMES, now=lambda: 100.0)


@pytest.fixture
async def workers(
    bus_place: Place, as_worker: Redis, keys: Keys
) -> AsyncIterator[tuple[Breakers, Breakers]]:
    """The breakers of two workers, each with its own connections."""
    async with connect(as_user(bus_place.url, "worker")) as other:
        yield worker_of(as_worker, keys, "one-1"), worker_of(other, keys, "two-2")


async def exchange(*workers: Breakers, provider: str = "cartesia") -> list[BreakerState]:
    """Let each worker exchange twice, so that all know what the others reported."""
    for _ in range(2):
        for worker in workers:
            await worker.exchange(provider)
    return [worker.states()[provider] for worker in workers]


async def make_probe_due(redis: Redis, keys: Keys) -> None:
    """Let the time to the next probe be over."""
    await redis.hset(keys.breaker("cartesia"), "probe_at", "1")


async def failed_sessions(redis: Redis, keys: Keys) -> list[bytes]:
    """Return the session of each failure that counts."""
    failures: Any = await redis.hget(keys.breaker("cartesia"), "failures")
    return [failure.split(b" ")[1] for failure in failures.split(b",")]


async def open_breaker(one: Breakers, two: Breakers) -> None:
    for number in range(MAX_FAILURES):
        (one, two)[number % 2].failed("cartesia", f"s{number}")
    assert await exchange(one, two) == [OPEN, OPEN]


@contract_of(scripts.exchange_breaker)
async def test_workers_share_a_breaker(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    one, two = workers
    await open_breaker(one, two)
    assert one.states()["flux"] is CLOSED
    assert not one.take_probe("cartesia")
    assert not two.take_probe("cartesia")
    assert await exchange(one, two) == [OPEN, OPEN], "no probe is due"
    await make_probe_due(redis, keys)
    for worker in (one, two):
        assert not worker.take_probe("cartesia")
    assert await exchange(one, two) == [PROBE_DUE, PROBING]
    assert not two.take_probe("cartesia")
    assert one.take_probe("cartesia")
    assert await exchange(one, two) == [PROBING, PROBING]
    one.probe_ended("cartesia", succeeded=False)
    assert await exchange(one, two) == [OPEN, OPEN]
    assert await redis.hget(keys.breaker("cartesia"), "wait") == b"1200000"
    assert 0 < await redis.ttl(keys.breaker("cartesia")) <= module.EXPIRY_S
    await make_probe_due(redis, keys)
    two.take_probe("cartesia")
    assert await exchange(one, two) == [PROBING, PROBE_DUE]
    assert two.take_probe("cartesia")
    two.probe_ended("cartesia", succeeded=True)
    assert await exchange(two, one) == [CLOSED, CLOSED]
    assert await redis.exists(keys.breaker("cartesia")) == 0


async def test_one_of_many_workers_probes(redis: Redis, as_worker: Redis, keys: Keys) -> None:
    fleet = [worker_of(as_worker, keys, f"w-{number}") for number in range(10)]
    await open_breaker(*fleet[:2])
    await exchange(*fleet)
    await make_probe_due(redis, keys)
    assert not any(worker.take_probe("cartesia") for worker in fleet)
    async with anyio.create_task_group() as tasks:
        for worker in fleet:
            tasks.start_soon(worker.exchange, "cartesia")
    (prober,) = [worker for worker in fleet if worker.take_probe("cartesia")]
    prober.probe_ended("cartesia", succeeded=True)
    await prober.exchange("cartesia")
    assert {*await exchange(*fleet)} == {CLOSED}


async def test_concurrent_reports_all_count(redis: Redis, as_worker: Redis, keys: Keys) -> None:
    fleet = [worker_of(as_worker, keys, f"w-{number}") for number in range(MAX_FAILURES)]
    async with anyio.create_task_group() as tasks:
        for number, worker in enumerate(fleet):
            worker.failed("cartesia", f"s{number}")
            tasks.start_soon(worker.exchange, "cartesia")
    assert {*await exchange(*fleet)} == {OPEN}
    await redis.unlink(keys.breaker("cartesia"))
    assert {*await exchange(*fleet)} == {CLOSED}, "Redis lost its state"


async def test_broken_session_opens_no_breaker(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    """Not even if it is taken over again and again."""
    for worker in workers:
        for _ in range(2 * MAX_FAILURES):
            worker.failed("cartesia", "broken")
    assert await exchange(*workers) == [CLOSED, CLOSED]
    assert 0 < await redis.ttl(keys.breaker("cartesia")) <= LONG_S
    workers[1].failed("cartesia", "other")
    assert await exchange(*workers) == [OPEN, OPEN]
    await redis.unlink(keys.breaker("cartesia"))


@pytest.mark.parametrize(
    ("met", "state"),
    [
        ("abcd", CLOSED),
        ("abcde", OPEN),
        ("aaaaaaaa", CLOSED),
        ("aaaaaaab", OPEN),
        ("baaaa", OPEN),
        ("abcd!e", CLOSED),
        ("ab!cdefg", OPEN),
    ],
)
async def test_fleet_opens_by_the_rule_of_a_worker(
    met: str,
    state: BreakerState,
    redis: Redis,
    keys: Keys,
    workers: tuple[Breakers, Breakers],
) -> None:
    """Each letter is a failure of a session, `!` a success; the workers take turns."""
    for number, event in enumerate(met):
        worker = workers[number % 2]
        if event == "!":
            worker.succeeded("cartesia")
        else:
            worker.failed("cartesia", event)
        await worker.exchange("cartesia")
    assert await exchange(*workers) == [state, state]
    await redis.unlink(keys.breaker("cartesia"))


async def test_success_between_failures_clears_them(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    one, two = workers
    for number in range(MAX_FAILURES - 1):
        one.failed("cartesia", f"s{number}")
    await exchange(one)
    two.succeeded("cartesia")
    two.failed("cartesia", "last")
    assert await exchange(one, two) == [CLOSED, CLOSED]
    assert await failed_sessions(redis, keys) == [b"last"]
    two.succeeded("cartesia")
    await exchange(two)
    assert await redis.exists(keys.breaker("cartesia")) == 0


async def test_old_failures_do_not_count(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    old = ",".join(f"{at} s{at}" for at in (1000, 2000, 9_999_999_999_999, 4000))
    await redis.hset(keys.breaker("cartesia"), "failures", old)
    workers[0].failed("cartesia", "new")
    assert await exchange(*workers) == [CLOSED, CLOSED]
    assert await failed_sessions(redis, keys) == [b"new"]
    await redis.unlink(keys.breaker("cartesia"))


async def test_lost_probe_is_replaced(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    """Its worker was killed, or the clock of Redis was set back."""
    await open_breaker(*workers)
    seconds, _ = await redis.time()
    for until_s in (seconds - 1, seconds + 10 * LONG_S):
        await redis.hset(keys.breaker("cartesia"), "probe", f"{until_s * 1000:.0f} killed")
        await redis.hset(
            keys.breaker("cartesia"), "probe_at", f"{(seconds + 100 * LONG_S) * 1000:.0f}"
        )
        assert not workers[0].take_probe("cartesia")
        assert await exchange(*workers) == [PROBE_DUE, PROBING]
        assert workers[0].take_probe("cartesia")
        workers[0].probe_ended("cartesia", succeeded=False)
        assert await exchange(*workers) == [OPEN, OPEN]
    await redis.unlink(keys.breaker("cartesia"))


async def test_failed_probe_of_another_worker_is_ignored(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    one, two = workers
    await open_breaker(one, two)
    await make_probe_due(redis, keys)
    one.take_probe("cartesia")
    assert await exchange(one, two) == [PROBE_DUE, PROBING]
    two.probe_ended("cartesia", succeeded=False)  # its own lease was over
    assert await exchange(one, two) == [PROBE_DUE, PROBING]
    await redis.unlink(keys.breaker("cartesia"))


async def test_nothing_is_written_while_all_is_well(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers]
) -> None:
    for worker in workers:
        worker.succeeded("cartesia")
        worker.take_probe("cartesia")
    assert await exchange(*workers) == [CLOSED, CLOSED]
    assert await redis.exists(keys.breaker("cartesia")) == 0


async def test_states_are_exchanged_while_running(
    redis: Redis, keys: Keys, workers: tuple[Breakers, Breakers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXCHANGE_INTERVAL_S", 0.02)
    one, two = workers
    for number in range(MAX_FAILURES):
        one.failed("flux", f"s{number}")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
        await eventually(lambda: two.states()["flux"] is OPEN, "the breaker of the other worker")
        tasks.cancel_scope.cancel()
    assert two.states()["cartesia"] is CLOSED
    await redis.unlink(keys.breaker("flux"))


async def test_single_provider_is_not_shared(as_worker: Redis, redis: Redis, keys: Keys) -> None:
    alone = Breakers(as_worker, keys, "one", ["cartesia"])
    for number in range(MAX_FAILURES):
        alone.failed("cartesia", f"s{number}")
    await alone.run()
    assert await redis.exists(keys.breaker("cartesia")) == 0


async def test_taken_key_is_logged_once(
    redis: Redis,
    keys: Keys,
    workers: tuple[Breakers, Breakers],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The breaker then follows what its worker knows; the other provider's is shared."""
    monkeypatch.setattr(module, "EXCHANGE_INTERVAL_S", 0.02)
    caplog.set_level(logging.WARNING)
    one, two = workers
    await redis.set(keys.breaker("cartesia"), "another program's")
    for provider in NAMES:
        for number in range(MAX_FAILURES):
            one.failed(provider, f"s{number}")
    caplog.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
        await eventually(lambda: two.states()["flux"] is OPEN, "the breaker of the other worker")
        tasks.cancel_scope.cancel()
    assert one.states()["cartesia"] is OPEN
    assert two.states()["cartesia"] is CLOSED
    unshared = [line for line in caplog.messages if "breaker is not shared" in line]
    assert 1 <= len(unshared) <= 2, "one of each worker"
    assert all("WRONGTYPE" in line for line in unshared)
    await redis.unlink(*map(keys.breaker, NAMES))


async def test_worker_follows_itself_while_redis_is_away() -> None:
    """The report is kept, and opens the breaker of the fleet when Redis is back."""
    now = 100.0
    async with GuardedRedis.start() as server, connect(as_user(server.url, "worker")) as client:
        one, two = (Breakers(client, Keys(), name, NAMES, now=lambda: now) for name in "ab")
        assert await exchange(one, two) == [CLOSED, CLOSED]
        await server.kill()
        for number in range(MAX_FAILURES):
            one.failed("cartesia", f"s{number}")
        with pytest.raises((RedisError, OSError)):
            await one.exchange("cartesia")
        assert one.states()["cartesia"] is OPEN
        now += SILENCE_S
        assert one.take_probe("cartesia"), "no worker can be asked"
        one.probe_ended("cartesia", succeeded=False)
        await server.restart()
        await eventually(partial(exchanged, one), "a Redis that answers")
        assert await exchange(one, two) == [OPEN, OPEN]


async def exchanged(worker: Breakers) -> bool:
    """Return whether Redis took a report."""
    try:
        await worker.exchange("cartesia")
    except (RedisError, OSError):
        return False
    return True


@asynccontextmanager
async def moving(cluster: EmbeddedCluster, key: str) -> AsyncIterator[None]:
    """Let the slot of a key be on its way to another master, which has no key of it yet."""
    slot = key_slot(key.encode())
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(cluster.url))
        assert isinstance(redis, ClusterClient)
        port = (await redis.node_for(key)).connection_pool.connection_kwargs["port"]
        source = next(node for node in cluster.masters if node.port == port)
        target = next(node for node in cluster.masters if node is not source)
        ids = [await cluster.identity(node) for node in (source, target)]
        old, new = [await stack.enter_async_context(client(node)) for node in (source, target)]
        await execute(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await execute(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        try:
            yield
        finally:
            await redis.delete(key)
            for node in (new, old):
                await execute(node, "CLUSTER", "SETSLOT", slot, "STABLE")


@pytest.mark.parametrize("bus_kind", ["cluster"])
@pytest.mark.parametrize("works", [False, True])
async def test_breaker_changes_while_its_slot_moves(
    workers: tuple[Breakers, Breakers], redis_cluster: EmbeddedCluster, keys: Keys, works: bool
) -> None:
    """A script may not use a key that it has removed: it would be on the other master."""
    one, two = workers
    for number in range(MAX_FAILURES - 1):
        one.failed("cartesia", f"s{number}")
    assert await exchange(one, two) == [CLOSED, CLOSED]
    async with moving(redis_cluster, keys.breaker("cartesia")):
        if works:
            two.succeeded("cartesia")
        two.failed("cartesia", "last")
        await two.exchange("cartesia")
        assert await exchange(one, two) == ([CLOSED, CLOSED] if works else [OPEN, OPEN])
