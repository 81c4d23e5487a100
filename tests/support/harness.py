"""The harness of an end-to-end test: a bus, the local STT server, workers, a producer, a consumer.

Each connects to Redis as its own user of `deploy/redis/users.acl`.
"""

import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import anyio
import pytest
from anyio.abc import Process
from redis.asyncio import Redis

from schemas.turns import Event, EventBase, SessionEnded, TurnEnd, decode_turn_entry
from tests.support.acl import as_user, grant
from tests.support.embedded_cluster import EmbeddedCluster, EmbeddedSentinel
from tests.support.polling import PATIENCE_S
from worker.bus.client.connection import RedisHealth, connect
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_words, words_of
from worker.local.redis import EmbeddedRedis
from worker.settings import Settings
from worker.stt.keys import ApiKey
from worker.worker import Worker

E = TypeVar("E", bound=EventBase)

KEY = "sk_car_test"
FLUX_KEY = "dg_test"
PCM16 = AudioFormat("pcm_s16le", 16_000)
WORD = len(synthesize_words([0], PCM16))
"""Size of one word in bytes."""

ON_CLUSTER_TOO = pytest.mark.parametrize("bus_kind", ["plain", "cluster"])
ON_EACH_BUS = pytest.mark.parametrize("bus_kind", ["plain", "cluster", "sentinel", "redis 7.0"])
"""Runs a test on one server, on a cluster, through a sentinel, and on Debian's Redis 7.0."""


def keys_of(settings: Settings, key: str = KEY) -> dict[str, ApiKey]:
    """Return the same key for every configured provider."""
    return {name: ApiKey(name, key) for name in settings.providers}


class Place(NamedTuple):
    """Addresses of a bus."""

    url: str
    masters: tuple[str, ...]
    """Plain URL of each server that holds keys, for an administrator."""


class Harness:
    """Bus and provider of one test."""

    def __init__(
        self,
        redis_url: str,
        prefix: str,
        stt_url: str,
        *,
        admin: Redis,
        producer: Redis,
        consumer: Redis,
    ) -> None:
        self.redis = admin
        """Client with which the test inspects, breaks and cleans up."""
        self.producer = producer
        self.consumer = consumer
        self.redis_url = redis_url
        """Redis URL of a worker."""
        self.prefix = prefix
        self.stt_url = stt_url
        self.lanes: dict[str, str] = {}
        """Lane of each session that is not on lane 0."""

    @classmethod
    @asynccontextmanager
    async def open(cls, redis_url: str, prefix: str, stt_url: str) -> AsyncIterator[Self]:
        """Connect every user to the bus at `redis_url`, whichever user the URL names."""
        async with (
            connect(as_user(redis_url, "admin")) as admin,
            connect(as_user(redis_url, "producer")) as producer,
            connect(as_user(redis_url, "consumer")) as consumer,
        ):
            url = as_user(redis_url, "worker")
            yield cls(url, prefix, stt_url, admin=admin, producer=producer, consumer=consumer)

    def settings(self, **changed: Any) -> Settings:
        """Return a worker's settings on this harness."""
        values: dict[str, Any] = {
            "redis_url": self.redis_url,
            "prefix": self.prefix,
            "stt_url": self.stt_url,
            "stt_flux_url": self.stt_url,
            "admin_addr": "",
            "drain_s": 5.0,
        }
        return Settings(**{**values, **changed})

    @asynccontextmanager
    async def worker(self, key: str = KEY, **changed: Any) -> AsyncIterator[Worker]:
        """Run a worker on this event loop."""
        settings = self.settings(**changed)
        worker = Worker(settings, keys_of(settings, key))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            try:
                yield worker
            finally:
                worker.stop()

    @asynccontextmanager
    async def worker_process(
        self, worker_id: str, log: Path, *, under: Sequence[str] = (), **changed: str
    ) -> AsyncIterator[Process]:
        """Run a worker in a separate process, and send it SIGTERM if it still runs at the end.

        `under` is a command that receives the worker's command as its last arguments.
        """
        env = {
            **os.environ,
            "TURNBUS_REDIS_URL": self.redis_url,
            "TURNBUS_PREFIX": self.prefix,
            "TURNBUS_STT_URL": self.stt_url,
            "TURNBUS_STT_FLUX_URL": self.stt_url,
            "TURNBUS_ADMIN_ADDR": "",
            "TURNBUS_WORKER_ID": worker_id,
            "CARTESIA_API_KEY": KEY,
            "DEEPGRAM_API_KEY": FLUX_KEY,
            **{f"TURNBUS_{name.upper()}": value for name, value in changed.items()},
        }
        with log.open("ab") as output:
            process = await anyio.open_process(
                [*under, sys.executable, "-m", "worker", "run"],
                env=env,
                stdout=output,
                stderr=output,
            )
        async with process:
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
                    with anyio.move_on_after(20, shield=True):
                        await process.wait()

    # -- producing

    def audio_key(self, session: str) -> str:
        """Return the key of a session's audio stream, as a producer does."""
        return f"{self.prefix}:{{{self._lane(session)}}}:audio:{session}"

    def _lane(self, session: str) -> str:
        return self.lanes.get(session, "0")

    async def announce(self, session: str, audio: AudioFormat = PCM16, **fields: str) -> str:
        """Append a session entry and return its id."""
        self.lanes[session] = fields.get("lane", "0")
        return await self.announce_as(
            {
                "session": session,
                "encoding": audio.encoding,
                "sample_rate": str(audio.sample_rate),
                **fields,
            }
        )

    async def announce_as(self, fields: Mapping[str, str | bytes]) -> str:
        """Append a session entry with exactly these fields and return its id."""
        written: dict[Any, Any] = dict(fields)
        entry: Any = await self.producer.xadd(f"{self.prefix}:sessions", written)
        return str(entry.decode())

    async def append(self, session: str, **fields: bytes | str) -> None:
        """Append an audio entry."""
        written: dict[Any, Any] = dict(fields)
        await self.producer.xadd(self.audio_key(session), written)

    async def play(
        self,
        session: str,
        sound: bytes,
        *,
        sizes: Sequence[int] = (3_200,),
        pause_s: float = 0.1,
        end: bool = True,
    ) -> None:
        """Append sound in chunks whose sizes cycle through `sizes`, `pause_s` apart.

        Chunks that share a word of PCM16 are sent together, followed by their pauses. A delay
        between them would let the worker replace the rest of the word with filler.
        """
        at = turn = 0
        while at < len(sound):
            chunks: list[bytes] = []
            while not chunks or _inside_word(sound, at):
                size = sizes[turn % len(sizes)]
                chunks.append(sound[at : at + size])
                at, turn = at + size, turn + 1
            async with self.producer.pipeline(transaction=False) as pipe:
                for chunk in chunks:
                    pipe.xadd(self.audio_key(session), {"audio": chunk})
                await pipe.execute()
            await anyio.sleep(pause_s * len(chunks))
        if end:
            await self.append(session, end="1")

    # -- consuming

    async def events(self, lane: str = "0", key: str | None = None) -> AsyncIterator[Event]:
        """Follow the turns of a lane, or of the stream `key`, from the first entry on.

        Waits during Redis outages.
        """
        health = RedisHealth()
        key = key or f"{self.prefix}:{{{lane}}}:turns"
        cursor: Any = "0"
        deadline = anyio.current_time() + PATIENCE_S
        while anyio.current_time() < deadline:
            reply: Any = await health.retry(partial(self.consumer.xread, {key: cursor}, block=100))
            for _, rows in reply:
                for entry, fields in rows:
                    cursor = entry
                    yield decode_turn_entry(fields).event
        raise TimeoutError(f"what was waited for on {key} never came")

    async def until_ended(self, *sessions: str) -> dict[str, list[Event]]:
        """Return all events of these sessions once each has ended."""
        seen: dict[str, list[Event]] = {session: [] for session in sessions}
        for lane in {self._lane(session) for session in sessions}:
            waiting = {session for session in sessions if self._lane(session) == lane}
            async for event in self.events(lane):
                if event.session in seen:
                    seen[event.session].append(event)
                    if isinstance(event, SessionEnded):
                        waiting.discard(event.session)
                if not waiting:
                    break
        return seen

    async def until(self, session: str, kind: type[E], count: int = 1) -> E:
        """Return the `count`th event of a kind once it is published."""
        async for event in self.events(self._lane(session)):
            if event.session == session and isinstance(event, kind):
                count -= 1
                if count == 0:
                    return event
        raise AssertionError("the stream of events never ends")

    async def dead(self) -> list[Mapping[bytes, bytes]]:
        """Return the fields of every dead letter."""
        rows: Any = await self.redis.xrange(f"{self.prefix}:dead")
        return [fields for _, fields in rows]


def _inside_word(sound: bytes, at: int) -> bool:
    """Return whether a cut at this byte splits a word. Words of PCM16 contain no zero byte."""
    begins = sound.rfind(b"\0", 0, at) + 1
    return at < len(sound) and sound[at] != 0 and (at - begins) % WORD != 0


@asynccontextmanager
async def staged(
    bus: EmbeddedRedis | EmbeddedCluster | EmbeddedSentinel, stt_url: str
) -> AsyncIterator[Harness]:
    """Open a harness on a bus of its own, once each of its servers has the users."""
    match bus:
        case EmbeddedCluster():
            servers = [*bus.masters, *bus.replicas]
        case EmbeddedSentinel():
            servers = [bus.master, bus.replica]
        case EmbeddedRedis():
            servers = [bus]
    grant((server.url for server in servers), "stt")
    async with Harness.open(bus.url, "stt", stt_url) as harness:
        yield harness


def words(events: Sequence[Event]) -> list[int | str]:
    """Return the words of all turns, read from their `turn.end` events."""
    return [
        word
        for event in events
        if isinstance(event, TurnEnd)
        for word in words_of(event.transcript)
    ]


def kinds(events: Sequence[Event]) -> list[str]:
    """Return the types of events."""
    return [str(event.__struct_config__.tag) for event in events]


def check_order(events: Sequence[Event]) -> None:
    """Assert the guarantees that hold for the events of any session."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len({event.run for event in events}) == 1
    assert kinds(events)[-1] == "session.ended"
    for turn in _turns(events):
        named = kinds(turn)
        assert named[0] == "turn.start"
        assert named[-1] == "turn.end"
        assert named.count("turn.start") == named.count("turn.end") == 1
        assert len({getattr(event, "turn", None) for event in turn}) == 1
        for before, after in itertools.pairwise(named):
            assert before != "turn.eager_end" or after in ("turn.resume", "turn.end")
        texts = [text for event in turn if (text := getattr(event, "transcript", None)) is not None]
        assert all(len(a) <= len(b) for a, b in itertools.pairwise(texts))


def _turns(events: Sequence[Event]) -> Iterator[list[Event]]:
    turn: list[Event] = []
    for event in events:
        if hasattr(event, "turn"):
            turn.append(event)
            if isinstance(event, TurnEnd):
                yield turn
                turn = []
    assert not turn, "a turn was left open"
