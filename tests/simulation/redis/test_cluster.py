"""The model of a cluster, compared with a real one: redirections, slots that move, waiting clients.

A step is a connection and its next command. Connections are named after their node: `2`, `2b`.
`~` does not read the reply yet; a step without a command reads it. `<2>` is the id of a node, and
`<port 2>` its port. `WAIT 2 1` waits until a node has one waiting client. `MOVE` lets the target
take the slot, then the source give it away. `SETTLE` waits until each node knows the owner.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol

import anyio
import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ResponseError

from schemas.turns import TurnUpdate
from tests.simulation.redis.clients import Client
from tests.simulation.redis.cluster import Cluster, ClusterNode, SlotMove
from tests.simulation.redis.running import cluster_listening, harness_on, new_cluster
from tests.support.embedded_cluster import EmbeddedCluster, client, execute
from tests.support.harness import PCM16, check_order, words
from tests.support.polling import eventually
from worker.local.emulator.engines.script import synthesize_words
from worker.local.emulator.server import TurnsServer

SLOT = key_slot(b"{a}")
HOME, TARGET = 2, 0
"""The node that has the slot at first, and the one to which it moves."""

BEGIN = [f"{TARGET} CLUSTER SETSLOT {SLOT} IMPORTING <{HOME}>",
         f"{HOME} CLUSTER SETSLOT {SLOT} MIGRATING <{TARGET}>"]  # fmt: skip
MOVE = [f"{TARGET} CLUSTER SETSLOT {SLOT} NODE <{TARGET}>",
        f"{HOME} CLUSTER SETSLOT {SLOT} NODE <{TARGET}>"]  # fmt: skip


def migrate(key: str) -> str:
    return f"{HOME} MIGRATE 127.0.0.1 <port {TARGET}> {key} 0 5000"


def aside(*steps: str) -> list[str]:
    """Let another connection send these steps."""
    return [re.sub(r"^(\d) ", r"\1b ", step) for step in steps]


REDIRECTIONS = [
    ["0 GET {a}x", "1 GET {a}x", "2 GET {a}x", "2 DEL {a}x {b}y", "0 EXISTS {a}x {a}y"],
    ["2 XREAD STREAMS {a}x {b}y 0 0", "0 XREAD COUNT 1 STREAMS {a}x 0", "0 XINFO STREAM {a}x",
     "0 XGROUP CREATE {a}x g 0", "0 XREADGROUP GROUP g me STREAMS {a}x >"],
    ["2 EVAL return(1) 2 {a}x {b}x", "0 EVAL return(1) 1 {a}x", "0 EVAL return(1) 0",
     "0 EVALSHA none 1 {a}x", "2 EVALSHA none 1 {a}x", "0 EVAL return(1) 5 {a}x",
     "0 EVAL return(1) x {a}x"],
    ["0 GET", "0 NOSUCH {a}x", "0 PING", "0 ASKING", "0 GET {a}x", "0 READONLY", "0 READWRITE",
     "0 SELECT 0", "0 DBSIZE x"],
    ["0 CLUSTER KEYSLOT {a}x", "0 CLUSTER KEYSLOT x{a}{b}", "0 CLUSTER KEYSLOT {}x",
     "0 CLUSTER SLOTS", "2 CLUSTER MYID", "0 CLUSTER NOSUCH", "0 CLUSTER"],
    ["2 MULTI", "2 SET {a}x 1", "2 GET {a}x", "2 EXEC", "0 MULTI", "0 SET {a}x 1", "0 EXEC"],
    ["2 MULTI", "2 SET {a}x 1", "2 SET {b}x 1", "2 EXEC", "2 GET {a}x"],
    ["0 CLUSTER SETSLOT 15495 MIGRATING <2>", "2 CLUSTER SETSLOT 15495 IMPORTING <0>",
     "2 CLUSTER SETSLOT 15495 MIGRATING nosuch", "2 CLUSTER SETSLOT 99999 STABLE",
     "2 CLUSTER SETSLOT 15495 NOSUCH", "2 SET {a}x 1", "2 CLUSTER SETSLOT 15495 NODE <0>",
     "2 CLUSTER COUNTKEYSINSLOT 15495", "2 CLUSTER GETKEYSINSLOT 15495 10"],
]  # fmt: skip
MOVES = [
    ["2 SET {a}x 1", *BEGIN, "2 GET {a}x", "2 GET {a}new", "0 GET {a}x", "1 GET {a}x", "0 ASKING",
     "0 GET {a}x", "0 GET {a}x", "0 ASKING", "0 SET {a}new 1", "2 EXISTS {a}x {a}new",
     "2 EXISTS {a}y {a}new", "0 ASKING", "0 EXISTS {a}x {a}new", "0 ASKING",
     "0 EXISTS {a}new {a}new", "0 ASKING", "0 EXISTS {a}y {a}y", "0 ASKING", "0 PING",
     "0 GET {a}new"],
    ["2 SET {a}x 1 EX 1000", "2 SET {a}y 1", *BEGIN, migrate("{a}x"), migrate("{a}x"),
     "2 GET {a}x", "0 ASKING", "0 GET {a}x", migrate("{a}y"), *MOVE, "SETTLE", "2 GET {a}x",
     "1 GET {a}x", "0 GET {a}x", "0 PERSIST {a}x", "0 PERSIST {a}y", "0 CLUSTER SLOTS",
     "1 CLUSTER SLOTS", "2 CLUSTER SLOTS", "2 CLUSTER COUNTKEYSINSLOT 15495"],
    ["2 SET {a}x 1", "2 SET {a}y 1", *BEGIN,
     "2 EVAL return(redis.call('GET',KEYS[1])) 1 {a}x", "2 EVAL return(1) 2 {a}x {a}new",
     "2 EVAL return(1) 2 {a}new {a}other",
     "2 EVAL return(redis.call('EXISTS',KEYS[2])) 2 {a}x {a}y",
     "2 EVAL redis.call('DEL',KEYS[1]);return(redis.call('GET',KEYS[1])) 1 {a}y",
     "2 EXISTS {a}y", "2 EXISTS {a}x",
     "2 EVAL redis.call('DEL',KEYS[1]);return(redis.call('SET',KEYS[1],1)) 1 {a}x", "2 GET {a}x",
     "0 ASKING", "0 EVAL redis.call('SET',KEYS[1],5);return(redis.call('GET',KEYS[1])) 1 {a}x",
     "0 ASKING", "0 EVAL return(1) 2 {a}x {a}y"],
    ["2 XADD {a}s 1-1 n 1", "2 XADD {a}s 2-1 n 1", "2 XGROUP CREATE {a}s g 0",
     "2 XREADGROUP GROUP g me COUNT 1 STREAMS {a}s >", *BEGIN, migrate("{a}s"), *MOVE, "SETTLE",
     "0 XPENDING {a}s g", "0 XREADGROUP GROUP g me STREAMS {a}s >", "0 XRANGE {a}s - +",
     "0 XADD {a}s 1-5 n 1"],
    ["2 MULTI", "2 SET {a}x 1", *aside(*BEGIN), "2 EXEC"],
    ["2 SET {a}x 1", *BEGIN, "2 MULTI", "2 GET {a}x", "2 SET {a}new 1", "2 EXEC"],
    ["2 SET {a}x 1", *BEGIN, "2 MULTI", "2 SET {a}new 1", "2 EXEC", "2 MULTI", "2 SET {a}new 1",
     "2 SET {b}new 1", "2 EXEC"],
    [*BEGIN, "0 ASKING", "0 MULTI", "0 SET {a}x 1", "0 EXEC", "0 GET {a}x", "0 MULTI",
     "0 SET {a}x 1", "0 EXEC", "0 ASKING", "0 MULTI", "0 EXISTS {a}x {a}y", "0 EXEC"],
]  # fmt: skip
WAITING = [
    ["2 ~XREAD BLOCK 0 STREAMS {a}s $", "WAIT 2 1", *aside(*BEGIN, *MOVE), "2"],
    ["2b XADD {a}s 1-1 n 1", "2 ~XREAD BLOCK 0 STREAMS {a}s $", "WAIT 2 1", *aside(*BEGIN),
     *aside(migrate("{a}s")), "2b GET {a}s", "WAIT 2 1", *aside(*MOVE), "2"],
    ["2b XGROUP CREATE {a}s g 0 MKSTREAM", "2 ~XREADGROUP GROUP g me BLOCK 0 STREAMS {a}s >",
     "WAIT 2 1", *aside(*BEGIN),
     *aside(migrate("{a}s")), "2"],
    ["2b XADD {a}s 1-1 n 1", "2b XADD {a}t 1-1 n 1", "2 ~XREAD BLOCK 0 STREAMS {a}s {a}t $ $",
     "WAIT 2 1", *aside(*BEGIN), *aside(migrate("{a}s")), "2b XADD {a}t 2-1 n 1", "2"],
    ["2 XADD {a}s 1-1 n 1", *BEGIN, "0 ASKING", "0 ~XREAD BLOCK 0 STREAMS {a}s 0", "WAIT 0 1",
     migrate("{a}s"), "0", "0 GET {a}s"],
    ["2 SSUBSCRIBE {a}c", "2b PUBSUB SHARDNUMSUB {a}c {b}c", "2b PUBSUB SHARDCHANNELS {a}*",
     "2 PING", "0 SSUBSCRIBE {a}c", "2b SSUBSCRIBE {a}c {b}c", *aside(*BEGIN), "2b EXISTS {a}c",
     "2c SSUBSCRIBE {a}d", "0 SSUBSCRIBE {a}c", *aside(*MOVE),
     "2", "2c", "2b PUBSUB SHARDNUMSUB {a}c", "2b EXISTS {a}c", "0 SSUBSCRIBE {a}c",
     "0 SUNSUBSCRIBE", "2 GET {a}c"],
]  # fmt: skip


class Place(Protocol):
    """A running cluster, real or not."""

    @property
    def ports(self) -> Sequence[int]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    async def waiting(self, node: int) -> int: ...

    async def owners(self, node: int) -> str: ...


class RealPlace:
    def __init__(self, cluster: EmbeddedCluster, ids: Sequence[str]) -> None:
        self._nodes = cluster.masters
        self.ports = [node.port for node in cluster.masters]
        self.ids = ids

    async def waiting(self, node: int) -> int:
        async with client(self._nodes[node]) as admin:
            return int((await admin.info("clients"))["blocked_clients"])

    async def owners(self, node: int) -> str:
        async with client(self._nodes[node]) as admin:
            return str(await execute(admin, "CLUSTER", "SLOTS"))


class ModelPlace:
    def __init__(self, cluster: Cluster) -> None:
        self._nodes: Sequence[ClusterNode] = cluster.nodes
        self.ports = [node.myself.port for node in cluster.nodes]
        self.ids = [node.myself.node_id.decode() for node in cluster.nodes]

    async def waiting(self, node: int) -> int:
        return len(self._nodes[node].waiting)

    async def owners(self, node: int) -> str:
        return str([peer.node_id for _, _, peer in self._nodes[node].view.ranges()])


@asynccontextmanager
async def real_place(cluster: EmbeddedCluster) -> AsyncIterator[RealPlace]:
    """Yield the real cluster; bring the slot home in the end, without keys."""
    home, target = (cluster.masters[number] for number in (HOME, TARGET))
    try:
        yield RealPlace(cluster, [await cluster.identity(node) for node in cluster.masters])
    finally:
        async with client(home) as old, client(target) as new:
            for admin in (old, new):
                for key in await execute(admin, "CLUSTER", "GETKEYSINSLOT", SLOT, 100):
                    async with admin.pipeline(transaction=False) as pipe:
                        pipe.execute_command("ASKING")
                        pipe.delete(key)
                        await pipe.execute()
                await execute(admin, "CLUSTER", "SETSLOT", SLOT, "STABLE")
            with suppress(ResponseError):  # it never left
                await cluster.migrate(SLOT, target, home)
        place = RealPlace(cluster, ())
        await eventually(lambda: _settled(place), "the slot at home")


async def _settled(place: Place) -> bool:
    return len({await place.owners(node) for node in range(3)}) == 1


@pytest.mark.parametrize("steps", REDIRECTIONS + MOVES + WAITING, ids=lambda steps: steps[0][:30])
async def test_clients_of_a_cluster_receive_the_same_replies(
    redis_cluster: EmbeddedCluster, steps: Sequence[str]
) -> None:
    cluster = new_cluster()
    async with real_place(redis_cluster) as there, cluster_listening(cluster):
        expected = await transcript(there, steps)
        found = await transcript(ModelPlace(cluster), steps)
    assert found == expected


async def transcript(place: Place, steps: Sequence[str]) -> list[tuple[str, str]]:
    """Return what each step receives, with the names of nodes."""
    received: list[tuple[str, str]] = []
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for step in steps:
            name, _, command = step.partition(" ")
            if name == "SETTLE":
                await eventually(lambda: _settled(place), "equal slots")
                continue
            if name == "WAIT":
                node, count = map(int, command.split())
                await eventually(_waits(place, node, count), "waiting clients")
                continue
            if name not in clients:
                url = f"redis://127.0.0.1:{place.ports[int(name[0])]}"
                clients[name] = await stack.enter_async_context(Client.open(url))
            if command:
                clients[name].send(_with_addresses(place, command.removeprefix("~")))
            if not command.startswith("~"):
                received.append((step, _with_names(place, await clients[name].receive())))
    return received


def _waits(place: Place, node: int, count: int) -> Callable[[], object]:
    async def holds() -> bool:
        return await place.waiting(node) == count

    return holds


def _with_addresses(place: Place, command: str) -> str:
    for number, (port, node_id) in enumerate(zip(place.ports, place.ids, strict=True)):
        command = command.replace(f"<{number}>", node_id).replace(f"<port {number}>", str(port))
    return command


def _with_names(place: Place, reply: bytes) -> str:
    text = reply.decode()
    for number, (port, node_id) in enumerate(zip(place.ports, place.ids, strict=True)):
        text = text.replace(f"127.0.0.1:{port}", f"<address {number}>")
        text = text.replace(f":{port}\r\n", f"<port {number}>").replace(node_id, f"<{number}>")
    return re.sub(r" script: \w*,? ?on @user_script:\d+\.", "", text)


# -- clients on the model


async def test_client_of_redis_py_knows_the_cluster() -> None:
    cluster = new_cluster()
    async with cluster_listening(cluster) as url:
        host, port = url.rpartition(",")[2].split(":")
        async with RedisCluster(host=host, port=int(port), protocol=2) as redis:
            for number in range(20):
                await redis.set(f"{number}", number)
                assert await redis.get(f"{number}") == b"%d" % number
            await redis.xadd("{a}s", {"n": "1"})
            assert await redis.xread({"{a}s": "0"})
            await redis.xgroup_create("{a}s", "g", "0")
            await redis.xreadgroup("g", "me", {"{a}s": ">"})
            assert await redis.eval("return KEYS[1]", 1, "{a}s") == b"{a}s"
            assert await redis.exists("{a}s", "{a}t") == 1
    assert all(node.execute("DBSIZE") for node in cluster.nodes)


async def test_worker_completes_a_session_while_its_slot_moves(stt: TurnsServer) -> None:
    cluster = new_cluster()
    async with cluster_listening(cluster) as url:
        home = cluster.holder(b"{0}")
        target = next(node for node in cluster.nodes if node is not home)
        async with (
            harness_on(url, stt.url) as harness,
            harness.worker(),
            anyio.create_task_group() as tasks,
        ):
            await harness.announce("call-1")
            tasks.start_soon(harness.play, "call-1", synthesize_words(range(9), PCM16))
            await harness.until("call-1", TurnUpdate, 1)
            mover = SlotMove(cluster, key_slot(b"{0}"), target)
            mover.begin()
            await anyio.sleep(0.2)
            while mover.move_key():
                await anyio.sleep(0.01)
            mover.finish()
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(9)]
    assert cluster.holder(b"{0}") is target
    assert not home.model.keys_in(key_slot(b"{0}"))


async def test_restarted_master_rejects_commands_until_it_has_joined() -> None:
    """Each command on its keys gets the error for two seconds."""
    steps = [
        f"{HOME} GET {{a}}x",
        f"{HOME} GET {{b}}x",
        f"{HOME} PING",
        f"{HOME} SSUBSCRIBE {{a}}c",
    ]
    cluster = new_cluster()
    async with EmbeddedCluster.start() as real, cluster_listening(cluster):
        await real.masters[HOME].kill()
        await real.masters[HOME].restart()
        cluster.nodes[HOME].restart()
        ids = [await real.identity(node) for node in real.masters]
        expected = await transcript(RealPlace(real, ids), steps)
        found = await transcript(ModelPlace(cluster), steps)
    assert found == expected
    assert found[0][1] == "-CLUSTERDOWN The cluster is down\r\n"


def test_keys_of_a_moved_slot_survive_a_restart() -> None:
    cluster = new_cluster()
    home, target = cluster.nodes[HOME], cluster.nodes[TARGET]
    home.execute("XADD", "{a}s", "1-1", "n", "1")
    home.execute("XGROUP", "CREATE", "{a}s", "g", "0")
    home.execute("XREADGROUP", "GROUP", "g", "me", "STREAMS", "{a}s", ">")
    home.execute("SET", "{a}x", "1", "EX", "1000")
    move = SlotMove(cluster, SLOT, target)
    move.begin()
    while move.move_key():
        pass
    move.finish()
    for node in (home, target):
        node.restart()
        assert not node.has_joined
    assert home.model.execute("DBSIZE") == 0
    assert target.model.execute("XPENDING", "{a}s", "g") == [1, b"1-1", b"1-1", [[b"me", b"1"]]]
    assert target.model.execute("PERSIST", "{a}x") == 1
