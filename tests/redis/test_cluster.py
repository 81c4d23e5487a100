"""Commands to a cluster reach the node that currently holds their key."""

import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import pytest
from redis import exceptions
from redis.asyncio import Redis
from redis.crc import key_slot

from tests.support.acl import GuardedRedis, as_user
from tests.support.clusters import answer_for_what_is_left
from tests.support.embedded_cluster import EmbeddedCluster, client, execute
from tests.support.polling import PATIENCE_S, eventually
from worker.bus import scripts
from worker.bus.client import cluster as cluster_module
from worker.bus.client import connection as connection_module
from worker.bus.client.cluster import Address, ClusterClient, key_of
from worker.bus.client.connection import RedisHealth, connect
from worker.local.redis import EmbeddedRedis, free_port

NAMES = [f"{{{number}}}:name" for number in range(20)]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), b"a"),
        (("XGROUP CREATE", b"a", "g", "0"), b"a"),
        (("EVALSHA", "sha", 2, "a", "b", "c"), b"a"),
        (("XREAD", b"COUNT", b"5", b"STREAMS", "a", "b", "0", "0"), b"a"),
        (("XREADGROUP", b"GROUP", "g", "c", b"STREAMS", "a", ">"), b"a"),
        (("PING",), None),
        (("SCRIPT LOAD", "return 1"), None),
        (("CLUSTER", "SLOTS"), None),
        (("SCAN", 0, "MATCH", "a"), None),
    ],
)
def test_key_of_each_command(command: tuple[Any, ...], key: bytes | None) -> None:
    assert key_of(command) == key


@pytest.fixture
def names(bus_prefix: str, expected_leftovers: list[str]) -> list[str]:
    """Keys that cover all three nodes."""
    expected_leftovers.append("*")
    return [f"{bus_prefix}:{name}" for name in NAMES]


@pytest.mark.parametrize("bus_kind", ["cluster"])
async def test_commands_reach_their_node(redis: Redis, names: list[str], bus_prefix: str) -> None:
    assert isinstance(redis, ClusterClient)
    for name in names:
        await redis.set(name, name)
    assert [await redis.get(name) for name in names] == [name.encode() for name in names]
    found = [key async for key in redis.scan_iter(f"{bus_prefix}:*")]
    assert sorted(found) == sorted(name.encode() for name in names)
    for master in await redis.masters():
        held = [key async for key in master.scan_iter(f"{bus_prefix}:*")]
        assert 0 < len(held) < len(names)


@pytest.mark.parametrize("bus_kind", ["cluster"])
async def test_pipeline_reaches_every_node(redis: Redis, names: list[str]) -> None:
    text = "return redis.call('SET', KEYS[1], ARGV[1])"
    async with redis.pipeline(transaction=False) as pipe:
        pipe.script_load(text)
        for name in names:
            pipe.set(name, name)
            pipe.get(name)
        pipe.incr(names[3])
        sha, *replies, refused = await pipe.execute(raise_on_error=False)
    assert replies == [reply for name in names for reply in (True, name.encode())]
    assert isinstance(refused, exceptions.ResponseError)
    for name in names:
        await redis.evalsha(sha, 1, name, "by script")
        assert await redis.get(name) == b"by script"
    async with redis.pipeline(transaction=False) as pipe:
        pipe.incr(names[3])
        with pytest.raises(exceptions.ResponseError, match="not an integer"):
            await pipe.execute()
    with pytest.raises(exceptions.DataError, match="cannot be a transaction"):
        redis.pipeline(transaction=True)


async def _port(redis: ClusterClient, name: str) -> int:
    """Return the port of the master that holds a key."""
    port: int = (await redis.node_for(name)).connection_pool.connection_kwargs["port"]
    return port


async def _home_and_another(
    cluster: EmbeddedCluster, redis: ClusterClient, key: str
) -> tuple[EmbeddedRedis, EmbeddedRedis]:
    """Return the master that holds a key, and one that does not."""
    port = (await redis.node_for(key)).connection_pool.connection_kwargs["port"]
    first, second, _ = cluster.masters
    source = next(node for node in cluster.masters if node.port == port)
    return source, second if source is first else first


async def test_moved_slots_are_followed(redis_cluster: EmbeddedCluster) -> None:
    """Slots move before a command, before a pipeline, and while the move is under way."""
    key = "{moving}:key"
    slot = key_slot(key.encode())
    async with connect(redis_cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        source, target = await _home_and_another(redis_cluster, redis, key)
        await redis.set(key, "1")
        names = [await redis_cluster.identity(node) for node in (source, target)]
        async with client(source) as old, client(target) as new:
            await execute(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
            await execute(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
            assert await redis.get(key) == b"1", "it is still there"
            assert await redis.set("{moving}:new", "2"), "a new key is written where it will be"
            async with redis.pipeline(transaction=False) as pipe:
                pipe.get("{moving}:new")
                pipe.get(key)
                assert await pipe.execute() == [b"2", b"1"]
            with pytest.raises(exceptions.TryAgainError):
                await redis.exists(key, "{moving}:new")
        await redis_cluster.migrate(slot, source, target)
        async with redis.pipeline(transaction=False) as pipe:
            pipe.get(key)
            pipe.get("{moving}:new")
            assert await pipe.execute() == [b"1", b"2"]
        assert await redis.exists(key, "{moving}:new") == 2
        await redis.delete(key, "{moving}:new")
        await redis_cluster.migrate(slot, target, source)
        assert await redis.get(key) is None


async def test_redirect_loop_between_nodes_is_waited_out(redis_cluster: EmbeddedCluster) -> None:
    """Two nodes redirect to each other until both know the slot's owner."""
    key = "{moving}:key"
    slot = key_slot(key.encode())
    async with connect(redis_cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        source, target = await _home_and_another(redis_cluster, redis, key)
        names = [await redis_cluster.identity(node) for node in (source, target)]
        health = RedisHealth()
        async with client(source) as old, client(target) as new:
            await execute(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
            with pytest.raises(exceptions.ConnectionError, match="redirected 8 times"):
                await redis.set(key, "1")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(health.retry, partial(redis.set, key, "2"))
                while health.up:
                    await anyio.sleep(0.01)
                await execute(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
            assert await redis.get(key) == b"2"
            await redis.delete(key)
            for node in (old, new):
                await execute(node, "CLUSTER", "SETSLOT", slot, "STABLE")


async def test_unresponsive_node_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SLOTS_TIMEOUT_S", 3_600.0)
    monkeypatch.setattr(connection_module, "_SOCKET_TIMEOUT_S", 3_600.0)
    unnoticed = EmbeddedCluster.start(config={"cluster-node-timeout": "3600000"})
    async with unnoticed as cluster, connect(cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        hung = cluster.masters[0]
        ports = {
            name: (await redis.node_for(name)).connection_pool.connection_kwargs["port"]
            for name in NAMES
        }
        name = next(name for name in NAMES if ports[name] != hung.port)
        assert await redis.set(name, "x")

        def hung_first(addresses: list[Address]) -> None:
            addresses.sort(key=lambda address: address[1] != hung.port)

        monkeypatch.setattr("random.shuffle", hung_first)
        os.kill(hung.pid, signal.SIGSTOP)
        try:
            redis.invalidate_slots()
            with anyio.fail_after(30):
                assert await redis.get(name) == b"x"
        finally:
            os.kill(hung.pid, signal.SIGCONT)


async def test_failed_node_affects_only_its_own_keys() -> None:
    async with EmbeddedCluster.start() as cluster, connect(cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        await answer_for_what_is_left(cluster)
        lost = cluster.masters[1]
        ports = {
            name: (await redis.node_for(name)).connection_pool.connection_kwargs["port"]
            for name in NAMES
        }
        await lost.kill()
        async with redis.pipeline(transaction=False) as pipe:
            for name in NAMES:
                pipe.set(name, "x")
            replies = await pipe.execute(raise_on_error=False)
        for name, reply in zip(NAMES, replies, strict=True):
            assert (reply is True) is (ports[name] != lost.port)
            assert reply is True or isinstance(reply, exceptions.ConnectionError)


async def test_failed_node_does_not_block_script_loading() -> None:
    """This holds whichever node is asked first."""
    async with EmbeddedCluster.start() as cluster, connect(cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        await answer_for_what_is_left(cluster)
        lost = min(cluster.masters, key=lambda node: node.port)
        ports = {name: await _port(redis, name) for name in NAMES}
        name = next(name for name in NAMES if ports[name] != lost.port)
        await lost.kill()
        health = RedisHealth()
        add = partial(scripts.write, redis, key=name, command="SADD", values=["member"])
        with anyio.fail_after(PATIENCE_S):
            assert await health.retry(add) == 1


async def test_node_without_slots_gets_the_scripts() -> None:
    """A node that was just added receives keys first, and the slot once it has all of them."""
    async with EmbeddedCluster.start() as cluster, AsyncExitStack() as stack:
        config = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
        added = await stack.enter_async_context(EmbeddedRedis.start(config=config))
        redis = await stack.enter_async_context(connect(cluster.url))
        old = await stack.enter_async_context(client(cluster.masters[0]))
        new = await stack.enter_async_context(client(added))
        assert isinstance(redis, ClusterClient)
        home = cluster.masters[0]
        ports = {name: await _port(redis, name) for name in NAMES}
        name = next(name for name in NAMES if ports[name] == home.port)
        await redis.sadd(name, "first")
        slot = key_slot(name.encode())
        bus = added.options["cluster-port"]
        await execute(old, "CLUSTER", "MEET", "127.0.0.1", added.port, bus)
        source, target = [await cluster.identity(node) for node in (cluster.masters[0], added)]

        async def met() -> bool:
            known = await execute(old, "CLUSTER", "NODES")
            about = await execute(new, "CLUSTER", "INFO")
            return target.encode() in known and b"cluster_state:ok" in about

        await eventually(met, "the nodes to meet")
        await execute(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", source)
        await execute(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", target)
        await execute(old, "MIGRATE", "127.0.0.1", added.port, name, 0, 5_000)
        with anyio.fail_after(PATIENCE_S):
            assert await scripts.write(redis, key=name, command="SADD", values=["second"]) == 1


async def test_single_server_is_not_a_cluster(redis_server: GuardedRedis) -> None:
    url = as_user(f"redis+cluster://127.0.0.1:{redis_server.port}", "worker")
    async with connect(url) as redis:
        with pytest.raises(exceptions.ResponseError, match="cluster support disabled"):
            await redis.get("a")
