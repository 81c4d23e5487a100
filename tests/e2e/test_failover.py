"""A cluster and a sentinel: servers fail, change roles and move slots inside a turn."""

from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from schemas import Encoding, Keys, SessionEntry
from schemas.turns import SessionStarted, TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.clusters import answer_for_what_is_left
from tests.support.embedded_cluster import EmbeddedCluster, EmbeddedSentinel, client, execute
from tests.support.harness import PCM16, WORD, Harness, check_order, kinds, staged, words
from tests.support.polling import eventually, no_longer
from tests.support.watchers import seen_alive
from worker.bus.client.cluster import ClusterClient
from worker.bus.ownership import HeartbeatReport, OwnedEntry, SessionLeases
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.redis import EmbeddedRedis
from worker.producer import Producer

LANES = ("a", "b", "c", "d")
"""Lanes that cover all three masters."""
KEYS = ["stt:{a}:turns", pytest.param("stt:sessions", marks=pytest.mark.slow)]


class Call:
    """A producer that retries during outages and can be paused."""

    def __init__(self, redis: Redis, session: str, lane: str, turns: int) -> None:
        entry = SessionEntry(
            session=session, encoding=Encoding.PCM_S16LE, sample_rate=16_000, lane=lane
        )
        self.session = session
        self.lane = lane
        self._producer = Producer(redis, Keys("stt"), entry)
        self._turns = turns
        self._may_go_on = anyio.Event()
        self._may_go_on.set()
        self._is_held = anyio.Event()

    async def run(self) -> None:
        await self._producer.announce()
        sound = b"".join(
            synthesize_words(range(at * 3, at * 3 + 3), PCM16) + synthesize_silence(1_000, PCM16)
            for at in range(self._turns)
        )
        for at in range(0, len(sound), WORD):
            if not self._may_go_on.is_set():
                self._is_held.set()
                await self._may_go_on.wait()
            await self._producer.append(sound[at : at + WORD])
            await anyio.sleep(0.2)
        await self._producer.end()

    async def hold(self) -> None:
        """Pause after a word."""
        self._may_go_on, self._is_held = anyio.Event(), anyio.Event()
        await self._is_held.wait()

    def go_on(self) -> None:
        self._may_go_on.set()

    async def check(self, harness: Harness) -> None:
        harness.lanes[self.session] = self.lane
        events = (await harness.until_ended(self.session))[self.session]
        check_order(events)
        assert words(events) == list(range(self._turns * 3))
        assert kinds(events).count("session.started") == 1


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Start times of each worker's heartbeats."""
    heartbeat, begun = SessionLeases.heartbeat, []

    async def note(intake: SessionLeases, running: list[tuple[str, int]]) -> HeartbeatReport:
        begun.append(anyio.current_time())
        return await heartbeat(intake, running)

    monkeypatch.setattr(SessionLeases, "heartbeat", note)
    return begun


async def holder_of(cluster: EmbeddedCluster, redis: Redis, key: str) -> EmbeddedRedis:
    assert isinstance(redis, ClusterClient)
    redis.invalidate_slots()  # it may have missed a slot move
    port = (await redis.node_for(key)).connection_pool.connection_kwargs["port"]
    return next(node for node in (*cluster.masters, *cluster.replicas) if node.port == port)


async def replicated(master: EmbeddedRedis) -> None:
    """Wait until the replica has acknowledged every write of the master."""
    async with client(master) as redis:
        written = (await redis.info("replication"))["master_repl_offset"]

        async def acknowledged() -> bool:
            return bool((await redis.info("replication"))["slave0"]["offset"] >= written)

        await eventually(acknowledged, "the replica to acknowledge")


@pytest.mark.slow
async def test_worker_killed_with_lanes_on_three_masters(
    redis_cluster: EmbeddedCluster, stt: TurnsServer, tmp_path: Path
) -> None:
    async with staged(redis_cluster, stt.url) as harness:
        calls = [Call(harness.producer, f"call-{lane}", lane, 8) for lane in LANES]
        slots = {
            (await holder_of(redis_cluster, harness.redis, f"stt:{{{lane}}}:turns")).port
            for lane in LANES
        }
        assert len(slots) == 3
        async with (
            harness.worker_process("one", tmp_path / "one", lease_ms="30000") as first,
            anyio.create_task_group() as tasks,
        ):
            for call in calls:
                tasks.start_soon(call.run)
                harness.lanes[call.session] = call.session.removeprefix("call-")
                await harness.until(call.session, SessionStarted)
            async with harness.worker_process("two", tmp_path / "two", lease_ms="30000"):
                async with AsyncExitStack() as connections:
                    masters = [
                        await connections.enter_async_context(client(node))
                        for node in redis_cluster.masters
                    ]
                    await seen_alive(masters, harness.prefix, 2)
                for call in calls:
                    await harness.until(call.session, TurnUpdate, 4)
                first.send_signal(SIGKILL)
                for call in calls:
                    await call.check(harness)
        assert "is dead" in (tmp_path / "two").read_text(), "waiting for its lease would take 30 s"
        assert await harness.redis.exists("stt:workers") == 0, "the dead worker's record is deleted"
        for call in calls:
            lane = harness.lanes[call.session]
            assert await harness.redis.get(Keys("stt").audio(lane, call.session)) == b"ended"
        for master in redis_cluster.masters:
            async with client(master) as redis:
                await redis.flushdb()


@pytest.mark.parametrize("key", KEYS)
async def test_slot_moves_inside_a_turn(
    redis_cluster: EmbeddedCluster, stt: TurnsServer, key: str
) -> None:
    async with staged(redis_cluster, stt.url) as harness:
        call = Call(harness.producer, "call-1", "a", 3)
        harness.lanes["call-1"] = "a"
        async with harness.worker(), anyio.create_task_group() as tasks:
            tasks.start_soon(call.run)
            await harness.until("call-1", TurnUpdate, 2)
            source = await holder_of(redis_cluster, harness.redis, key)
            target = next(node for node in redis_cluster.masters if node is not source)
            slot = key_slot(key.encode())
            await redis_cluster.migrate(slot, source, target, pause_s=0.3)
            await call.check(harness)
        assert await holder_of(redis_cluster, harness.redis, key) is target
        await redis_cluster.migrate(slot, target, source)
        for master in redis_cluster.masters:
            async with client(master) as redis:
                await redis.flushdb()


@pytest.mark.parametrize(
    ("how", "key"),
    [
        ("killed", "stt:{a}:turns"),
        pytest.param("killed", "stt:sessions", marks=pytest.mark.slow),
        pytest.param("asked to", "stt:{a}:turns", marks=pytest.mark.slow),
        pytest.param("asked to", "stt:sessions", marks=pytest.mark.slow),
    ],
)
async def test_master_fails_over_inside_a_turn(stt: TurnsServer, key: str, how: str) -> None:
    async with (
        EmbeddedCluster.start(replicas=True) as cluster,
        staged(cluster, stt.url) as harness,
        harness.worker() as worker,
        anyio.create_task_group() as tasks,
    ):
        call = Call(harness.producer, "call-1", "a", 3)
        harness.lanes["call-1"] = "a"
        tasks.start_soon(call.run)
        await harness.until("call-1", TurnUpdate, 2)
        master = await holder_of(cluster, harness.redis, key)
        replica = cluster.replicas[cluster.masters.index(master)]
        if how == "killed":
            await call.hold()
            await replicated(master)
            await master.kill()
            await no_longer(lambda: worker.health.up, "Redis")
            call.go_on()
        else:
            async with client(replica) as redis:
                await execute(redis, "CLUSTER", "FAILOVER")
        await call.check(harness)
        assert await holder_of(cluster, harness.redis, key) is replica


async def test_master_is_demoted_and_promoted_again(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start() as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker() as worker,
    ):
        await harness.announce("call-1")
        await harness.play(
            "call-1", synthesize_words([1], PCM16) + synthesize_silence(900, PCM16), end=False
        )
        for _ in range(2):
            await execute(harness.redis, "REPLICAOF", "127.0.0.1", 1)
            await no_longer(lambda: worker.health.up, "Redis")
            await execute(harness.redis, "REPLICAOF", "NO", "ONE")
            await eventually(lambda: worker.health.up, "Redis")
        await harness.play("call-1", synthesize_words([2], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]


@pytest.mark.slow
async def test_lost_master_holds_up_only_its_own_lanes(stt: TurnsServer) -> None:
    async with EmbeddedCluster.start(replicas=True) as cluster, staged(cluster, stt.url) as harness:
        await answer_for_what_is_left(cluster)
        for node in (*cluster.masters, *cluster.replicas):
            async with client(node) as admin:
                await admin.config_set("cluster-replica-no-failover", "yes")
        at = {lane: await holder_of(cluster, harness.redis, f"{{{lane}}}") for lane in LANES}
        sessions = await holder_of(cluster, harness.redis, "stt:sessions")
        lost = next(lane for lane in LANES if at[lane] is not sessions)
        kept = next(lane for lane in LANES if at[lane] is not at[lost])
        calls = [Call(harness.producer, f"call-{lane}", lane, 3) for lane in (lost, kept)]
        async with harness.worker(), anyio.create_task_group() as tasks:
            for call in calls:
                harness.lanes[call.session] = call.lane
                tasks.start_soon(call.run)
            for call in calls:
                await harness.until(call.session, TurnUpdate, 2)
            await calls[0].hold()
            await replicated(at[lost])
            await at[lost].kill()
            await calls[1].check(harness)
            async with client(cluster.replicas[cluster.masters.index(at[lost])]) as replica:
                await execute(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
            calls[0].go_on()
            await calls[0].check(harness)


@pytest.mark.parametrize("lost", ["stt:{c}:turns", "stt:lanes"])
async def test_lost_master_blocks_no_new_session_of_another(
    stt: TurnsServer, heartbeats: list[float], lost: str
) -> None:
    """The session starts after the loss; the master of lane c also stores the worker records."""
    async with EmbeddedCluster.start() as cluster, staged(cluster, stt.url) as harness:
        await answer_for_what_is_left(cluster)
        at = {lane: await holder_of(cluster, harness.redis, f"{{{lane}}}") for lane in LANES}
        gone = await holder_of(cluster, harness.redis, lost)
        assert gone is not await holder_of(cluster, harness.redis, "stt:sessions")
        call = Call(harness.producer, "call-1", next(it for it in LANES if at[it] is not gone), 1)
        async with harness.worker() as worker:
            await eventually(lambda: worker.readiness.ready, "the worker")
            await gone.kill()
            await harness.announce("call-0", lane=next(it for it in LANES if at[it] is gone))
            await no_longer(lambda: worker.health.up, "Redis")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call.run)
                await call.check(harness)
            seen = len(heartbeats)
            await eventually(lambda: len(heartbeats) >= seen + 3, "heartbeats")


async def test_claim_on_a_lost_master_blocks_no_heartbeat(
    stt: TurnsServer, heartbeats: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat makes the claim because the reply with the entry was lost."""
    read_new, robbed = SessionLeases.read_new, anyio.Event()

    async def rob(intake: SessionLeases, at_most: int, block_ms: int) -> list[OwnedEntry]:
        if await read_new(intake, at_most, block_ms):
            robbed.set()
        return []

    monkeypatch.setattr(SessionLeases, "read_new", rob)
    async with EmbeddedCluster.start() as cluster, staged(cluster, stt.url) as harness:
        await answer_for_what_is_left(cluster)
        at = {lane: await holder_of(cluster, harness.redis, f"{{{lane}}}") for lane in LANES}
        own = [
            await holder_of(cluster, harness.redis, f"stt:{it}") for it in ("sessions", "workers")
        ]
        lost = next(lane for lane in LANES if at[lane] not in own)
        async with harness.worker():
            await eventually(lambda: heartbeats, "the worker")
            await at[lost].kill()
            await harness.announce("call-1", lane=lost)
            await robbed.wait()
            seen = len(heartbeats)
            await eventually(lambda: len(heartbeats) >= seen + 5, "heartbeats")


async def test_sentinel_fails_over_inside_a_turn(stt: TurnsServer) -> None:
    async with (
        EmbeddedSentinel.start() as servers,
        staged(servers, stt.url) as harness,
        harness.worker() as worker,
        anyio.create_task_group() as tasks,
    ):
        call = Call(harness.producer, "call-1", "0", 3)
        tasks.start_soon(call.run)
        await harness.until("call-1", TurnUpdate, 2)
        await call.hold()
        await replicated(servers.master)
        await servers.master.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        call.go_on()
        await call.check(harness)
        about: Any = await harness.redis.info("replication")
        assert about["role"] == "master"
        async with client(servers.replica) as redis:
            assert await redis.xlen("stt:{0}:turns") > 0
