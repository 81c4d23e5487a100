"""The check of a worker's permissions leaves nothing behind, wherever it is interrupted."""

from redis.asyncio import Redis

from schemas.keys import Keys
from tests.support.harness import ON_EACH_BUS
from worker.bus.permissions import (
    PROBE_TTL_S,
    _creation_commands,
    _probe_commands,
    find_missing,
)


async def _lifetimes(redis: Redis, prefix: str) -> dict[str, int]:
    """Return the seconds until each key expires; -1 if it stays."""
    return {key.decode(): await redis.ttl(key) async for key in redis.scan_iter(f"{prefix}:*")}


@ON_EACH_BUS
async def test_interrupted_check_leaves_keys_that_expire(
    redis: Redis, as_worker: Redis, bus_prefix: str
) -> None:
    stream = f"{bus_prefix}:{{0}}:check:one"
    lifetimes: dict[str, int] = {}
    for command in (*_creation_commands(stream), *_probe_commands(stream)):
        await as_worker.execute_command(*command)  # type: ignore[no-untyped-call]
        lifetimes = await _lifetimes(redis, bus_prefix)
        assert all(0 < seconds <= PROBE_TTL_S for seconds in lifetimes.values()), command
    assert not lifetimes


@ON_EACH_BUS
async def test_check_removes_its_keys(redis: Redis, as_worker: Redis, bus_prefix: str) -> None:
    assert not await find_missing(as_worker, Keys(bus_prefix))
    assert not await _lifetimes(redis, bus_prefix)
