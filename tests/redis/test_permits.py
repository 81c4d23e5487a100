"""Connection permits: who holds one, who may release it, and which ones expire."""

from collections.abc import Sequence

import anyio
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from schemas.keys import Keys
from tests.redis.contracts import contract_of
from tests.support.polling import eventually
from worker.bus import permits as module
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth
from worker.bus.permits import ConnectionPermits, Permit


@pytest.fixture
def keys(bus_prefix: str) -> Keys:
    return Keys(bus_prefix)


@pytest.fixture
def gates(as_worker: Redis, keys: Keys) -> tuple[ConnectionPermits, ConnectionPermits]:
    """Permits of two workers that share a limit of one."""
    one, two = (ConnectionPermits(as_worker, RedisHealth(), keys, 1) for _ in range(2))
    return one, two


def test_both_keys_are_in_one_slot(keys: Keys) -> None:
    assert key_slot(keys.gate.encode()) == key_slot(keys.gate_holders.encode())


@contract_of(scripts.request_permits, scripts.release_permit)
async def test_fenced_owner_releases_no_permit(
    redis: Redis, keys: Keys, gates: tuple[ConnectionPermits, ConnectionPermits]
) -> None:
    one, two = gates
    await one.acquire(Permit("0:s", "5-0", 1))
    await two.acquire(Permit("0:s", "5-0", 2))
    await one.release(Permit("0:s", "5-0", 1))
    assert await redis.zcard(keys.gate) == 1, "the next owner's socket is open"
    await two.acquire(Permit("0:s", "6-0", 1))
    await two.release(Permit("0:s", "5-0", 9))
    assert await redis.zcard(keys.gate) == 1, "its entry was restored since"
    await two.release(Permit("0:s", "6-0", 1))
    assert await redis.exists(keys.gate, keys.gate_holders) == 0


async def test_fenced_owner_gets_no_permit(
    redis: Redis, keys: Keys, gates: tuple[ConnectionPermits, ConnectionPermits]
) -> None:
    one, two = gates
    await two.acquire(Permit("0:s", "5-0", 2))
    with anyio.move_on_after(3 * module.POLL_INTERVAL_S) as waiting:
        await one.acquire(Permit("0:s", "5-0", 1))
    assert waiting.cancelled_caught
    await two.release(Permit("0:s", "5-0", 2))
    assert await redis.zcard(keys.gate) == 0


async def test_abandoned_permits_expire(
    redis: Redis,
    keys: Keys,
    gates: tuple[ConnectionPermits, ConnectionPermits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RENEW_INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "PERMIT_TTL_S", 0.5)
    one, two = gates
    await redis.zadd(keys.gate, {"0:unknown": 1})
    await redis.zadd(keys.gate, {"0:killed": 2})
    await redis.hset(keys.gate_holders, "0:killed", "5-0 1 1000")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        await one.acquire(Permit("0:wants", "6-0", 1))
        tasks.start_soon(two.run)
        await anyio.sleep(2 * module.PERMIT_TTL_S)

        async def is_kept() -> bool:
            return await redis.zrange(keys.gate, 0, -1) == [b"0:wants"]

        # A worker that stalled this long has lost its permit, and takes it again.
        await eventually(is_kept, "the renewed permit alone")
        one.discard("6-0")
        while await redis.exists(keys.gate, keys.gate_holders):
            await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


async def test_lost_permits_are_recreated(
    redis: Redis,
    keys: Keys,
    gates: tuple[ConnectionPermits, ConnectionPermits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RENEW_INTERVAL_S", 0.05)
    one, two = gates
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        await one.acquire(Permit("0:s", "5-0", 1))
        await redis.delete(keys.gate, keys.gate_holders)
        while not await redis.zcard(keys.gate):
            await anyio.sleep(0.02)
        with anyio.move_on_after(2 * module.POLL_INTERVAL_S) as waiting:
            await two.acquire(Permit("0:other", "4-0", 1))
        assert waiting.cancelled_caught
        tasks.cancel_scope.cancel()
    await one.release(Permit("0:s", "5-0", 1))
    await two.release(Permit("0:other", "4-0", 1))


async def test_released_permit_is_not_renewed(
    redis: Redis,
    keys: Keys,
    gates: tuple[ConnectionPermits, ConnectionPermits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The renewal has already begun."""
    one, _ = gates
    await one.acquire(Permit("0:s", "5-0", 1))
    request, begun, done = ConnectionPermits._request, anyio.Event(), anyio.Event()

    async def request_slowly(
        gate: ConnectionPermits, permits: Sequence[Permit], lapse_s: float = 0.0
    ) -> list[int]:
        begun.set()
        await anyio.sleep(0.1)
        try:
            return await request(gate, permits, lapse_s)
        finally:
            done.set()

    monkeypatch.setattr(ConnectionPermits, "_request", request_slowly)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        await begun.wait()
        await one.release(Permit("0:s", "5-0", 1))
        await done.wait()
        tasks.cancel_scope.cancel()
    assert await redis.exists(keys.gate, keys.gate_holders) == 0


async def test_waiting_sessions_are_counted(
    gates: tuple[ConnectionPermits, ConnectionPermits],
) -> None:
    one, two = gates
    first, second, third = (Permit(f"0:s{n}", f"{n}-0", 1) for n in range(3))
    assert not await one.acquire(first)
    assert (one.waiting, two.waiting) == (0, 0)
    waited = []

    async def want(permit: Permit) -> None:
        waited.append(await two.acquire(permit))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(want, second)
        await eventually(lambda: two.waiting == 1, "a session that waits")
        with anyio.move_on_after(3 * module.POLL_INTERVAL_S):
            await one.acquire(third)
        assert (one.waiting, two.waiting) == (0, 1)
        await one.release(first)
    assert (waited, two.waiting) == ([True], 0)
    for permit in (second, third):
        await two.release(permit)


async def test_clock_set_back_admits_no_waiter_early(
    redis: Redis, keys: Keys, gates: tuple[ConnectionPermits, ConnectionPermits]
) -> None:
    one, two = gates
    ahead = (await redis.time())[0] + 3_600
    await redis.zadd(keys.gate, {"0:s": ahead * 1_000_000})
    await one.acquire(Permit("0:s", "5-0", 1))
    with anyio.move_on_after(2 * module.POLL_INTERVAL_S) as waiting:
        await two.acquire(Permit("0:other", "6-0", 1))
    assert waiting.cancelled_caught
    assert await redis.zrange(keys.gate, 0, -1) == [b"0:s", b"0:other"]
    await one.release(Permit("0:s", "5-0", 1))
    await two.release(Permit("0:other", "6-0", 1))
