"""The fenced commit: what it applies, what it rejects, and what a retry does."""

import os
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from schemas.keys import Keys
from tests.redis.contracts import contract_of
from tests.support.acl import GuardedRedis, as_user
from tests.support.embedded_cluster import EmbeddedCluster
from tests.support.harness import ON_CLUSTER_TOO
from worker.bus import scripts
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import RedisHealth, connect
from worker.bus.client.wire import Wire
from worker.bus.committer import CRASHED, Committer
from worker.bus.scripts import ScriptCall
from worker.telemetry.logs import SessionName

FENCE = ("5-0", 1, "nonce")


class Limits(NamedTuple):
    """Limits of the events that a lane keeps."""

    retention_ms: int = 3_600_000
    max_turns: int = 1_000_000


class Bench:
    """State of one session, and commits to it."""

    def __init__(self, redis: Redis, as_worker: Redis, keys: Keys) -> None:
        self.redis = redis
        self.as_worker = as_worker
        self.keys = keys

    async def begin(self) -> None:
        await self.redis.hset(
            self.keys.state("0", "s"),
            mapping={"status": "live", "entry": "5-0", "count": 1, "nonce": "nonce", "seq": 1},
        )

    def commit(
        self,
        first: int,
        events: Sequence[str],
        *,
        fence: tuple[str, int, str] = FENCE,
        trim: str = "",
        end: bool = False,
        out: str = "lane",
        number: int = 1,
        snapshot: str = "snap",
        lane: str = "0",
        session: str = "s",
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> ScriptCall:
        entry_id, delivery_count, nonce = fence
        return scripts.commit.call(
            **self.keys.of_session(lane, session),
            entry_id=entry_id,
            delivery_count=delivery_count,
            nonce=nonce,
            session=session,
            out=out,
            snapshot=snapshot,
            trim_before=trim,
            ending="end" if end else "",
            retention_s=60,
            turns_retention_ms=limits.retention_ms,
            max_turns=limits.max_turns,
            commit_number=number,
            first_seq=first,
            events=[part for event in events for part in ("turn.update", event, "")],
        )

    async def run(self, commit: ScriptCall) -> tuple[str, int]:
        await scripts.commit.load(self.as_worker)
        verdict, seq = await self.as_worker.evalsha(*commit)
        return verdict.decode(), seq

    async def published(self) -> list[str]:
        rows: Any = await self.redis.xrange(self.keys.turns("0"))
        return [fields[b"event"].decode() for _, fields in rows]


@pytest.fixture
async def bench(
    redis: Redis, as_worker: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> Bench:
    expected_leftovers.append("{0}:*")
    bench = Bench(redis, as_worker, Keys(bus_prefix))
    await bench.begin()
    return bench


@contract_of(scripts.commit)
async def test_events_are_applied_once(bench: Bench) -> None:
    commit = bench.commit(2, ["a", "b"])
    assert await bench.run(commit) == ("ok", 3)
    assert await bench.run(commit) == ("ok", 3), "its reply was lost"
    assert await bench.run(bench.commit(3, ["b", "c"])) == ("ok", 4)
    assert await bench.published() == ["a", "b", "c"]


async def test_late_commit_reverts_nothing(bench: Bench) -> None:
    """Its connection broke. A retry and later commits were applied over another connection."""
    late = bench.commit(2, ["a"], number=1, snapshot="inside a turn")
    assert await bench.run(late) == ("ok", 2)
    assert await bench.run(bench.commit(3, ["b"], number=2, snapshot="after it")) == ("ok", 3)
    assert await bench.run(bench.commit(4, [], number=3, snapshot="further on")) == ("ok", 3)
    for old in (late, bench.commit(3, ["b"], number=2, snapshot="after it")):
        assert await bench.run(old) == ("ok", 3)
        state = bench.keys.state("0", "s")
        assert await bench.redis.hget(state, "snapshot") == b"further on"
    assert await bench.published() == ["a", "b"]


async def test_hole_in_seq_is_rejected(bench: Bench) -> None:
    assert await bench.run(bench.commit(3, ["b"])) == ("gap", 1)
    assert await bench.published() == []


@pytest.mark.parametrize("fence", [("5-0", 2, "nonce"), ("5-0", 1, "other"), ("6-0", 1, "nonce")])
async def test_commit_of_another_owner_is_rejected(
    bench: Bench, fence: tuple[str, int, str]
) -> None:
    assert await bench.run(bench.commit(2, ["a"], fence=fence)) == ("fenced", 1)
    assert await bench.published() == []


async def test_commit_without_state_is_rejected(bench: Bench) -> None:
    await bench.redis.delete(bench.keys.state("0", "s"))
    assert await bench.run(bench.commit(2, ["a"])) == ("missing", 0)
    assert await bench.published() == []


async def test_commit_trims_committed_audio(bench: Bench) -> None:
    audio = bench.keys.audio("0", "s")
    for ms in (10, 20, 30):
        await bench.redis.xadd(audio, {"audio": b"x"}, id=f"{ms}-0")
    await bench.run(bench.commit(2, ["a"], trim="20-0"))
    rows: Any = await bench.redis.xrange(audio)
    assert [entry for entry, _ in rows] == [b"20-0", b"30-0"]


NODE_ENTRIES = 100
"""Maximum number of entries of a stream's node. Redis trims events by whole nodes."""

ON_EACH_LIMIT = pytest.mark.parametrize(
    ("limits", "age_ms", "kept"),
    [(Limits(retention_ms=60_000), 3_600_000, 0), (Limits(max_turns=100), 0, 100)],
    ids=["age", "number"],
)
"""Limits, the age of 1,000 events, and how many of them are within the limits."""


async def _publish(bench: Bench, number: int, age_ms: int) -> None:
    seconds, _ = await bench.redis.time()
    async with bench.redis.pipeline(transaction=False) as pipe:
        for sequence in range(number):
            entry_id = f"{seconds * 1000 - age_ms}-{sequence}"
            pipe.xadd(bench.keys.turns("0"), {"event": "earlier"}, id=entry_id)
        await pipe.execute()


@ON_EACH_LIMIT
async def test_eighth_event_trims_the_lane(
    bench: Bench, limits: Limits, age_ms: int, kept: int
) -> None:
    await _publish(bench, 1_000, age_ms)
    assert await bench.run(bench.commit(2, [*"abcdef"], limits=limits)) == ("ok", 7)
    assert len(await bench.published()) == 1_006
    assert await bench.run(bench.commit(8, [*"gh"], limits=limits, number=2)) == ("ok", 9)
    published = await bench.published()
    assert published[-8:] == [*"abcdefgh"]
    assert len(published) <= kept + 2 * NODE_ENTRIES


@ON_EACH_LIMIT
async def test_end_of_a_session_trims_the_lane(
    bench: Bench, limits: Limits, age_ms: int, kept: int
) -> None:
    await _publish(bench, 1_000, age_ms)
    assert await bench.run(bench.commit(2, ["a"], limits=limits, end=True)) == ("ok", 2)
    published = await bench.published()
    assert published[-1] == "a"
    assert len(published) <= kept + 2 * NODE_ENTRIES


@contract_of(scripts.commit)
async def test_commit_of_the_session_end(bench: Bench) -> None:
    audio = bench.keys.audio("0", "s")
    await bench.redis.xadd(audio, {"audio": b"x"})
    commit = bench.commit(2, ["a"], end=True, out="session")
    assert await bench.run(commit) == ("ok", 2)
    assert await bench.run(commit) == ("ok", 2)
    assert await bench.redis.get(audio) == b"ended"
    state = await bench.redis.hgetall(bench.keys.state("0", "s"))
    assert state[b"status"] == b"ended"
    for key in (audio, bench.keys.state("0", "s"), bench.keys.session_turns("0", "s")):
        assert 0 < await bench.redis.ttl(key) <= 60
    assert await bench.published() == ["a"]


class Source:
    """Commits one event and records the replies."""

    name = SessionName("s", None)

    def __init__(self, commit: ScriptCall, lane: str = "0") -> None:
        self.commit = commit
        self.lane = lane
        self.answers: list[tuple[str, int]] = []
        self.answered = anyio.Event()

    def next_commit(self) -> ScriptCall | None:
        return self.commit

    def on_commit_result(self, verdict: str, seq: int) -> None:
        self.answers.append((verdict, seq))
        self.answered.set()

    def abort(self, why: str) -> None:
        self.answers.append((why, 0))
        self.answered.set()


async def test_committer_replaces_readers_after_a_demotion(bench: Bench) -> None:
    """A wire that reconnected before the address of the master changed reads from a replica."""
    async with GuardedRedis.start() as server, connect(server.url) as redis:
        reads, source = Wire(redis), Source(bench.commit(2, ["a"]))
        committer = Committer(redis, RedisHealth())
        await redis.replicaof("127.0.0.1", 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.run)
            committer.submit(source)
            with anyio.fail_after(30):
                while not committer._health.outage:
                    await anyio.sleep(0.01)
                await reads.connect()  # to the same server as before
                link = reads._link
                assert link is not None
                await redis.replicaof("NO", "ONE")
                await source.answered.wait()
                while link.usable:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        reads.close()


@ON_CLUSTER_TOO
async def test_committer_replies_to_each_session(bench: Bench) -> None:
    good = Source(bench.commit(2, ["a"]))
    late = Source(bench.commit(9, ["z"]))
    await bench.redis.set(bench.keys.state("0", "odd"), "no hash")
    odd = Source(bench.commit(2, ["a"], session="odd"))
    await bench.redis.script_flush()
    committer = Committer(bench.as_worker, RedisHealth())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(committer.run)
        for speaker in (good, late, odd):
            committer.submit(speaker)
        for speaker in (good, late, odd):
            await speaker.answered.wait()
        tasks.cancel_scope.cancel()
    assert good.answers == [("ok", 2)]
    assert late.answers[0][0] == "gap"
    assert odd.answers[0][0].startswith("WRONGTYPE"), "the error affects no other session"


async def test_commit_that_cannot_be_built_affects_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (Source(bench.commit(2, ["a"])) for _ in range(2))

    def crash() -> ScriptCall:
        raise ZeroDivisionError("a fault put in by the test")

    monkeypatch.setattr(bad, "next_commit", crash)
    committer = Committer(bench.as_worker, RedisHealth())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(committer.run)
        for speaker in (bad, good):
            committer.submit(speaker)
            await speaker.answered.wait()
        tasks.cancel_scope.cancel()
    assert (bad.answers, good.answers) == ([(CRASHED, 0)], [("ok", 2)])


async def test_reply_that_cannot_be_handled_affects_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (Source(bench.commit(2, ["a"])) for _ in range(2))

    def crash(verdict: str, seq: int) -> None:
        raise ZeroDivisionError(f"a fault put in by the test, for {verdict} {seq}")

    monkeypatch.setattr(bad, "on_commit_result", crash)
    committer = Committer(bench.as_worker, RedisHealth())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(committer.run)
        for speaker in (bad, good):
            committer.submit(speaker)
        for speaker in (bad, good):
            await speaker.answered.wait()
        tasks.cancel_scope.cancel()
    assert (bad.answers, good.answers) == ([(CRASHED, 0)], [("ok", 2)])


async def test_unresponsive_master_delays_only_its_own_lanes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.bus.client.connection._SOCKET_TIMEOUT_S", 3_600.0)
    unnoticed = EmbeddedCluster.start(config={"cluster-node-timeout": "3600000"})
    async with unnoticed as cluster, connect(cluster.url) as redis:
        assert isinstance(redis, ClusterClient)
        keys = Keys("stt")
        ports = {
            lane: (await redis.node_for(keys.turns(lane))).connection_pool.connection_kwargs["port"]
            for lane in "abcdefgh"
        }
        hung = next(node for node in cluster.masters if node.port == ports["a"])
        other = next(lane for lane in ports if ports[lane] != ports["a"])
        health = RedisHealth()
        committer = Committer(redis, health)

        async def commit(lane: str, first: int) -> Source:
            state: dict[Any, Any] = {
                "status": "live",
                "entry": "5-0",
                "count": 1,
                "nonce": "nonce",
                "seq": 1,
            }
            if first == 2:
                await redis.hset(keys.state(lane, "s"), mapping=state)
            commits = Bench(redis, redis, keys)
            speaker = Source(commits.commit(first, ["event"], number=first, lane=lane), lane)
            committer.submit(speaker)
            return speaker

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(committer.run)
                for lane in ("a", other):
                    await (await commit(lane, 2)).answered.wait()
                os.kill(hung.pid, signal.SIGSTOP)
                try:
                    held_up = await commit("a", 3)
                    for first in (3, 4):
                        await (await commit(other, first)).answered.wait()
                    assert health.up, "the outage is not detected yet"
                finally:
                    os.kill(hung.pid, signal.SIGCONT)
                await held_up.answered.wait()
                tasks.cancel_scope.cancel()
        assert held_up.answers == [("ok", 3)]


async def test_committer_retries_during_an_outage() -> None:
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "worker")) as as_worker,
    ):
        bench = Bench(redis, as_worker, Keys("stt"))
        await bench.begin()
        health = RedisHealth()
        committer = Committer(as_worker, health)
        speaker = Source(bench.commit(2, ["a"]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.run)
            await server.kill()
            committer.submit(speaker)
            while health.up:
                await anyio.sleep(0.01)
            await server.restart()
            await speaker.answered.wait()
            tasks.cancel_scope.cancel()
        assert speaker.answers == [("ok", 2)]
        assert health.up
        assert await bench.published() == ["a"]


async def test_full_redis_still_accepts_commits() -> None:
    """Commits free more memory than they use. Rejecting them would keep Redis full."""
    async with (
        GuardedRedis.start(maxmemory=3_000_000) as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "worker")) as as_worker,
    ):
        bench = Bench(redis, as_worker, Keys("stt"))
        await bench.begin()
        audio = bench.keys.audio("0", "s")
        last: Any = b""
        full = False
        while not full:
            try:
                last = await redis.xadd(audio, {"audio": bytes(100_000)})
            except OutOfMemoryError:
                full = True
        assert await bench.run(bench.commit(2, ["a"], trim=last.decode())) == ("ok", 2)
        await redis.xadd(audio, {"audio": b"x"})
