"""The Redis users of `deploy/redis/users.acl` have the rights a session needs, and no others."""

import hashlib
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from schemas.keys import Keys
from schemas.turns import SessionEnded, TurnEvent, TurnUpdate, decode_turn_entry
from tests.stage import PCM16, Stage, check_order, words
from worker.bus.rights import _probes, missing_rights
from worker.local.engines.script import hush, say
from worker.local.redis import EmbeddedRedis
from worker.local.server.server import TurnsServer

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
PASSWORD = "of-a-test"
AUDIO, TURNS, STATE = "stt:{0}:audio:call-1", "stt:{0}:turns", "stt:{0}:state:call-1"

# What no probe of `turnbus check` sends: for its own questions, for connecting, for transactions
# and subscriptions, and what a client of a cluster asks.
BESIDE_PROBES = {
    *("ping", "info", "client|setinfo", "client|setname", "multi", "exec", "discard"),
    *("xrevrange", "smembers"),
    *("subscribe", "unsubscribe", "pubsub|numsub"),
    *("ssubscribe", "sunsubscribe", "pubsub|shardnumsub"),
    *("command", "cluster|slots", "cluster|shards", "readonly", "asking"),
}


def _rules() -> dict[str, list[str]]:
    lines = USERS.read_text("ascii").splitlines()
    assert all(line.startswith("user ") for line in lines), "Redis takes no comments in this file"
    return {line.split()[1]: line.split()[2:] for line in lines}


class Acl:
    """A Redis server with the users of the file, each with a password."""

    def __init__(self, server: EmbeddedRedis, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack

    def url(self, user: str) -> str:
        """Where a user connects."""
        return self.server.url.replace("//", f"//{user}:{PASSWORD}@")

    async def ask(self, *command: str | int) -> Any:
        """Send a command as the admin."""
        admin: Any = await self.connect("admin")
        return await admin.execute_command(*command)

    async def connect(self, user: str) -> Redis:
        """Return a client that is this user."""
        client = Redis.from_url(self.url(user), protocol=2, retry=Retry(NoBackoff(), 0))
        return await self._stack.enter_async_context(client)


@asynccontextmanager
async def _users(directory: Path, config: Mapping[str, str]) -> AsyncIterator[Acl]:
    """Start a server with the file as an operator prepares it: a password's hash for each user."""
    known = directory / "users.acl"
    known.write_text("user default on nopass ~* &* +@all\n", "ascii")
    async with (
        EmbeddedRedis.start(config={"aclfile": str(known), **config}) as server,
        Redis.from_url(server.url, protocol=2) as redis,
        AsyncExitStack() as stack,
    ):
        secret = "#" + hashlib.sha256(PASSWORD.encode()).hexdigest()
        lines = [f"user {user} {secret} {' '.join(rules)}\n" for user, rules in _rules().items()]
        known.write_text("".join(lines), "ascii")
        await redis.acl_load()
        yield Acl(server, stack)


@pytest.fixture
async def acl(tmp_path: Path) -> AsyncIterator[Acl]:
    """Start a server with the users."""
    async with _users(tmp_path, {}) as acl:
        yield acl


async def test_a_session_through_a_takeover_each_as_its_own_user(
    acl: Acl, stt: TurnsServer, tmp_path: Path
) -> None:
    admin = await acl.connect("admin")
    says = Stage(await acl.connect("producer"), acl.url("worker"), "stt", stt.url)
    hears = Stage(await acl.connect("consumer"), "", "stt", stt.url)
    sound = b"".join(say(range(at, at + 3), PCM16) + hush(900, PCM16) for at in (0, 3, 6, 9))
    lease_ms = "30000"  # so long that only a lost subscription tells in time
    async with (
        says.worker_process("one", tmp_path / "one", lease_ms=lease_ms) as one,
        anyio.create_task_group() as tasks,
    ):
        await says.announce("call-1", out="session")
        tasks.start_soon(says.play, "call-1", sound)
        await hears.until("call-1", TurnUpdate, 2)
        async with says.worker_process("two", tmp_path / "two", lease_ms=lease_ms):
            while len(await admin.pubsub_channels("stt:alive:*")) < 2:
                await anyio.sleep(0.05)
            await anyio.sleep(1.5)  # the second has seen the first alive
            one.send_signal(signal.SIGKILL)
            events = (await hears.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(12))
    assert "is dead" in (tmp_path / "two").read_text()
    assert "permission" not in (tmp_path / "one").read_text() + (tmp_path / "two").read_text()
    assert not await acl.ask("ACL LOG"), "each user may do all it tried to do"


async def test_a_consumer_group(acl: Acl, stt: TurnsServer, tmp_path: Path) -> None:
    says = Stage(await acl.connect("producer"), acl.url("worker"), "stt", stt.url)
    consumer = await acl.connect("consumer")
    await consumer.xgroup_create(TURNS, "agents", id="0", mkstream=True)
    heard: list[TurnEvent] = []
    async with says.worker_process("one", tmp_path / "one"):
        await says.announce("call-1")
        await says.play("call-1", say([0, 1, 2], PCM16), pause_s=0)
        while not heard or not isinstance(heard[-1], SessionEnded):
            reply: Any = await consumer.xreadgroup("agents", "a", {TURNS: ">"}, block=1_000)
            for _, rows in reply:
                heard += [decode_turn_entry(fields).event for _, fields in rows]
                await consumer.xack(TURNS, "agents", *(entry for entry, _ in rows))
    assert words(heard) == [0, 1, 2]
    assert await consumer.smembers("stt:lanes") == {b"0"}


async def test_the_worker_passes_its_own_check(acl: Acl) -> None:
    missing = await missing_rights(await acl.connect("worker"), Keys("stt"))
    assert not missing.commands
    assert not missing.keys
    assert not missing.faults


def test_the_worker_may_do_nothing_it_does_not_do() -> None:
    probed = {str(probe[0]).lower().replace(" ", "|") for probe in _probes("stream", "value")}
    granted = {rule[1:] for rule in _rules()["worker"] if rule.startswith("+")}
    assert granted == probed | BESIDE_PROBES


async def test_the_scaler_reads_the_demand_and_nothing_else(acl: Acl) -> None:
    producer, scaler = await acl.connect("producer"), await acl.connect("scaler")
    await producer.xadd("stt:sessions", {"session": "call-1"})
    assert await scaler.xlen("stt:sessions") == 1


@pytest.mark.parametrize(
    ("user", "command"),
    [
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
async def test_refused(acl: Acl, user: str, command: tuple[str, ...]) -> None:
    client: Any = await acl.connect(user)
    with pytest.raises(NoPermissionError):
        await client.execute_command(*command)


async def test_on_a_cluster(tmp_path: Path) -> None:
    config = {"cluster-enabled": "yes", "cluster-config-file": str(tmp_path / "nodes")}
    async with _users(tmp_path, config) as acl:
        await acl.ask("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        while (await acl.ask("CLUSTER INFO"))["cluster_state"] != "ok":
            await anyio.sleep(0.05)
        async with (
            RedisCluster.from_url(acl.url("producer")) as producer,
            RedisCluster.from_url(acl.url("scaler")) as scaler,
            RedisCluster.from_url(acl.url("worker")) as worker,
            RedisCluster.from_url(acl.url("consumer")) as consumer,
        ):
            await producer.xadd("stt:sessions", {"session": "call-1"})
            await producer.xadd(AUDIO, {"end": "1"})
            assert await scaler.xlen("stt:sessions") == 1
            await worker.xadd(TURNS, {"event": "{}"})
            assert len(await consumer.xread({TURNS: "0"})) == 1
        assert not await acl.ask("ACL LOG")


async def test_nobody_without_a_name(acl: Acl) -> None:
    with pytest.raises(AuthenticationError):
        await (await acl.connect("default")).ping()
