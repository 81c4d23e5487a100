"""The Redis users of `deploy/redis/users.acl` have only the rights they need.

The rest of the suite runs under these users, which shows that their rights suffice.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from schemas.keys import Keys
from tests.support.acl import PASSWORD, USERS, GuardedRedis, as_user, users
from tests.support.embedded_cluster import client, execute
from worker.bus.permissions import _probe_commands, find_missing
from worker.local.redis import EmbeddedRedis

README = (USERS.parent / "README.md").read_text("utf-8")

AUDIO, TURNS, STATE = "stt:{0}:audio:call-1", "stt:{0}:turns", "stt:{0}:state:call-1"
METADATA = "stt:ingest:call-1"

# Commands that `turnbus check` does not probe: its own queries, connecting, transactions and
# subscriptions, and the commands of a cluster's client.
BESIDE_PROBES = {
    *("ping", "info", "client|setinfo", "client|setname", "multi", "exec", "discard"),
    *("xrevrange", "smembers"),
    *("subscribe", "unsubscribe", "pubsub|numsub"),
    *("ssubscribe", "sunsubscribe", "pubsub|shardnumsub"),
    *("command", "cluster|slots", "cluster|shards", "readonly", "asking"),
}


class Acl:
    """A Redis server with the users of the file."""

    def __init__(self, server: GuardedRedis, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack

    async def ask(self, *command: str | int) -> Any:
        """Send a command as the admin."""
        admin: Any = await self.connect("admin")
        return await admin.execute_command(*command)

    async def connect(self, user: str) -> Redis:
        """Return a client with this user."""
        url = as_user(self.server.url, user)
        client = Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))
        return await self._stack.enter_async_context(client)


@pytest.fixture
async def acl() -> AsyncIterator[Acl]:
    """Start a server with the users."""
    async with GuardedRedis.start() as server, AsyncExitStack() as stack:
        yield Acl(server, stack)


async def test_worker_passes_check(acl: Acl) -> None:
    missing = await find_missing(await acl.connect("worker"), Keys("stt"))
    assert not missing.commands
    assert not missing.keys
    assert not missing.errors


def test_worker_has_no_unused_rights() -> None:
    probed = {str(probe[0]).lower().replace(" ", "|") for probe in _probe_commands("stream")}
    granted = {rule[1:] for rule in users()["worker"] if rule.startswith("+")}
    assert granted == probed | BESIDE_PROBES


async def test_scaler_can_only_read_demand(acl: Acl) -> None:
    producer, scaler = await acl.connect("producer"), await acl.connect("scaler")
    await producer.xadd("stt:sessions", {"session": "call-1"})
    assert await scaler.xlen("stt:sessions") == 1


async def test_ingest_can_append_and_read_events(acl: Acl) -> None:
    ingest, worker = await acl.connect("ingest"), await acl.connect("worker")
    await acl.ask("HSET", METADATA, "tenant", "shop")
    await worker.xadd(TURNS, {"event": "{}"})
    await worker.hset(STATE, "run", "1-1")
    assert await ingest.hgetall(METADATA) == {b"tenant": b"shop"}
    await ingest.xadd("stt:sessions", {"session": "call-1"})
    async with ingest.pipeline(transaction=True) as pipe:
        pipe.xadd(AUDIO, {"audio": b"1"})
        pipe.xadd(AUDIO, {"end": "1"}, nomkstream=True)
        assert len(await pipe.execute()) == 2
    assert await ingest.type(AUDIO) == b"stream"
    assert await ingest.hmget(STATE, "run", "status") == [b"1-1", None]
    assert await ingest.xread({TURNS: "0"})
    assert await ingest.xrange(TURNS) == await ingest.xrevrange(TURNS)


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("ingest", ("XRANGE", AUDIO, "-", "+")),
        ("ingest", ("XINFO", "STREAM", AUDIO)),
        ("ingest", ("XREAD", "STREAMS", AUDIO, "0")),
        ("ingest", ("XADD", TURNS, "*", "event", "forged")),
        ("ingest", ("XADD", METADATA, "*", "tenant", "forged")),
        ("ingest", ("XRANGE", "stt:sessions", "-", "+")),
        ("ingest", ("HGETALL", STATE)),
        ("ingest", ("HSET", STATE, "run", "1-1")),
        ("ingest", ("HSET", METADATA, "tenant", "forged")),
        ("ingest", ("XTRIM", AUDIO, "MAXLEN", "0")),
        ("ingest", ("UNLINK", AUDIO)),
        ("ingest", ("SUBSCRIBE", "stt:alive:one")),
        ("ingest", ("EVAL", "return 1", "0")),
        ("producer", ("XREAD", "STREAMS", TURNS, "0")),
        ("producer", ("XRANGE", AUDIO, "-", "+")),
        ("producer", ("XLEN", "stt:sessions")),
        ("producer", ("XADD", TURNS, "*", "event", "forged")),
        ("producer", ("XADD", "stt:dead", "*", "session", "call-1")),
        ("producer", ("XADD", "other:{0}:audio:call-1", "*", "audio", "")),
        ("producer", ("SET", AUDIO, "ended")),
        ("producer", ("UNLINK", AUDIO)),
        ("producer", ("EVAL", "return 1", "0")),
        ("consumer", ("XADD", AUDIO, "*", "audio", "")),
        ("consumer", ("XADD", TURNS, "*", "event", "forged")),
        ("consumer", ("XREAD", "STREAMS", AUDIO, "0")),
        ("consumer", ("XRANGE", "stt:sessions", "-", "+")),
        ("consumer", ("XTRIM", TURNS, "MAXLEN", "0")),
        ("consumer", ("XDEL", TURNS, "1-1")),
        ("consumer", ("XGROUP", "DESTROY", TURNS, "agents")),
        ("consumer", ("SADD", "stt:lanes", "1")),
        ("consumer", ("SUBSCRIBE", "stt:alive:one")),
        ("worker", ("SUBSCRIBE", "other")),
        ("worker", ("PUBLISH", "stt:alive:one", "")),
        ("worker", ("XADD", "other:sessions", "*", "session", "call-1")),
        ("worker", ("EVAL", "return redis.call('DEL', KEYS[1])", "1", STATE)),
        ("worker", ("KEYS", "*")),
        ("worker", ("FLUSHALL",)),
        ("worker", ("CONFIG", "GET", "*")),
        ("scaler", ("XRANGE", "stt:sessions", "-", "+")),
        ("scaler", ("XADD", "stt:sessions", "*", "session", "call-1")),
        ("scaler", ("XLEN", TURNS)),
    ],
)
async def test_command_outside_rights_is_refused(
    acl: Acl, user: str, command: tuple[str, ...]
) -> None:
    client: Any = await acl.connect(user)
    with pytest.raises(NoPermissionError):
        await client.execute_command(*command)


async def test_cluster_clients_connect(tmp_path: Path) -> None:
    """These are clients of redis-py, not the worker's own."""
    config = {"cluster-enabled": "yes", "cluster-config-file": str(tmp_path / "nodes")}
    async with GuardedRedis.start(config=config) as server, AsyncExitStack() as stack:
        acl = Acl(server, stack)
        await acl.ask("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        with anyio.fail_after(60):
            while (await acl.ask("CLUSTER INFO"))["cluster_state"] != "ok":
                await anyio.sleep(0.05)
        async with (
            RedisCluster.from_url(as_user(server.url, "producer")) as producer,
            RedisCluster.from_url(as_user(server.url, "scaler")) as scaler,
            RedisCluster.from_url(as_user(server.url, "worker")) as worker,
            RedisCluster.from_url(as_user(server.url, "consumer")) as consumer,
            RedisCluster.from_url(as_user(server.url, "ingest")) as ingest,
        ):
            await producer.xadd("stt:sessions", {"session": "call-1"})
            await producer.xadd(AUDIO, {"end": "1"})
            assert await scaler.xlen("stt:sessions") == 1
            await worker.xadd(TURNS, {"event": "{}"})
            assert len(await consumer.xread({TURNS: "0"})) == 1
            await ingest.xadd(AUDIO, {"end": "1"}, nomkstream=True)
            assert await ingest.xread({TURNS: "0"})
        assert not await acl.ask("ACL LOG")


async def _fails_over(sentinel: Redis) -> bool:
    """Send FAILOVER to a sentinel; return whether it knows enough of the replica to start."""
    try:
        await execute(sentinel, "SENTINEL", "FAILOVER", "mymaster")
    except ResponseError as error:
        if "NOGOODSLAVE" not in str(error):
            raise
        return False
    return True


async def test_replica_and_sentinel_fail_over() -> None:
    """They log in as the users that the README adds, and fail over."""
    added = [line.split() for line in README.splitlines() if line.startswith("  user ")]
    config = {"masteruser": "replica", "masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
    async with (
        GuardedRedis.start(config=config) as first,
        GuardedRedis.start(config=config) as second,
        EmbeddedRedis.start_sentinel() as sentinel,
        client(first) as master,
        client(second) as replica,
        client(sentinel) as watch,
    ):
        for redis in (master, replica):
            for _, user, *rules in added:
                await execute(redis, "ACL SETUSER", user, *rules, f">{PASSWORD}")
        await execute(replica, "REPLICAOF", "127.0.0.1", first.port)
        await execute(watch, "SENTINEL", "MONITOR", "mymaster", "127.0.0.1", first.port, 1)
        for name, value in (("auth-user", "sentinel"), ("auth-pass", PASSWORD)):
            await execute(watch, "SENTINEL", "SET", "mymaster", name, value)
        with anyio.fail_after(60):
            while (await replica.info("replication")).get("master_link_status") != "up":
                await anyio.sleep(0.05)
            while not await execute(watch, "SENTINEL", "REPLICAS", "mymaster"):
                await anyio.sleep(0.05)
            while not await _fails_over(watch):
                await anyio.sleep(0.05)
            while (await replica.info("replication"))["role"] != "master":
                await anyio.sleep(0.05)
        for redis in (master, replica):
            assert not await redis.acl_log()


async def test_default_user_is_refused(acl: Acl) -> None:
    with pytest.raises(AuthenticationError):
        await (await acl.connect("default")).ping()
