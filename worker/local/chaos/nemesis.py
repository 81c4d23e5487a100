"""The nemesis: breaks everything around the sessions, by a table, a seed and a clock."""

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from redis.exceptions import RedisError, ResponseError

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.bus import scripts
from worker.bus.connection import patiently
from worker.errors import TurnbusError
from worker.local.chaos.fleet import Life, Slot
from worker.local.chaos.plan import Plan
from worker.local.chaos.proxy import Link
from worker.local.chaos.rig import Rig

_NO_SERVICE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
    b"Connection: close\r\n\r\ndown"
)
_MARKS: Final = (
    *(script.sha.encode() for script in (scripts.COMMIT, scripts.COMMIT, scripts.COMMIT)),
    scripts.CLAIM.sha.encode(),
    scripts.HEARTBEAT.sha.encode(),
    scripts.ADOPT.sha.encode(),
    scripts.RELEASE.sha.encode(),
    b"XREADGROUP",
    b"XACK",
)
"""Requests whose reply is worth losing: one of each kind, and above all commits."""

_LONG_PAUSE_S: Final = 8.0
"""At least: longer than the default lease by far."""

_EMPTY: Final = """
local held = {}
for _, row in ipairs(redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 10000)) do
  held[row[1]] = row[2]
end
local chosen = {}
for _, entry in ipairs(redis.call("XRANGE", KEYS[1], "-", "+")) do
  for at = 3, #ARGV do
    if held[entry[1]] == ARGV[at] then
      chosen[#chosen + 1] = entry[1]
    end
  end
end
if ARGV[2] == "one" then
  chosen = {chosen[1]}
end
for _, id in ipairs(chosen) do
  redis.call("XDEL", KEYS[1], id)
end
return #chosen
"""
"""Delete entries whose sessions run: one that nobody took yet, nobody could put back."""


class Kill(NamedTuple):
    """A kill -9 that left another worker: when, in Unix milliseconds, and whose sessions' owner."""

    at_ms: int
    sessions: tuple[str, ...]


class Nemesis:
    """Applies faults until it is told to stop; what it broke it mends."""

    def __init__(self, plan: Plan, rig: Rig) -> None:
        self._plan = plan
        self._rng = random.Random(f"{plan.seed} nemesis")  # noqa: S311 - a schedule
        self._rig = rig
        self._held: set[str] = set()
        self._stopped = False
        self._lease_s = plan.lease_ms / 1_000
        self._long_pause_s = max(_LONG_PAUSE_S, 3 * self._lease_s)
        self.applied: Final[Counter[str]] = Counter()
        self.kills: Final[list[Kill]] = []
        self.outages_ms: Final[list[tuple[int, int]]] = []
        """When Redis was away."""
        self.log: Final[list[str]] = []
        """What was done, and when."""

    def stop(self) -> None:
        """Begin no more faults; `run` returns once those under way are mended."""
        self._stopped = True

    async def run(self) -> None:
        """Apply faults, several at a time, each at random times."""
        names = list(self._plan.faults or FAULTS)
        weights = [FAULTS[name].weight for name in names]
        async with anyio.create_task_group() as tasks:
            while not self._stopped:
                await anyio.sleep(self._rng.expovariate(1 / self._plan.every_s))
                (name,) = self._rng.choices(names, weights)
                if not self._stopped:
                    tasks.start_soon(self._apply, name)

    async def _apply(self, name: str) -> None:
        if await FAULTS[name].act(self):
            self.applied[name] += 1

    # -- what is broken by one fault at a time

    @contextmanager
    def _hold(self, *names: str) -> Iterator[bool]:
        """Keep other faults from these parts; false if one has them."""
        free = not self._held.intersection(names)
        if free:
            self._held.update(names)
        try:
            yield free
        finally:
            if free:
                self._held.difference_update(names)

    def _slot(self) -> Slot | None:
        """Choose a worker no other fault is at."""
        free = [
            slot for slot in self._rig.fleet.slots if slot.lives and slot.name not in self._held
        ]
        return self._rng.choice(free) if free else None

    def _note(self, what: str) -> None:
        self.log.append(f"{clock(time.time_ns() // 1_000_000)} {what}")

    # -- workers

    async def _kill(self) -> bool:
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            life = slot.lives[-1]
            sessions = await self._sessions_of(life)
            self._note(f"kill {life.name}, which runs {len(sessions)}")
            others = [other for other in self._rig.fleet.slots if other.lives and other is not slot]
            if any(other.name not in self._held for other in others):
                self.kills.append(Kill(time.time_ns() // 1_000_000, sessions))
            await self._rig.fleet.kill(life)
            await anyio.sleep(self._rng.uniform(0, 2 * self._lease_s))
            await self._rig.fleet.start(slot)
        return True

    async def _kill_all(self) -> bool:
        slots = self._rig.fleet.slots
        with self._hold(*(slot.name for slot in slots)) as free:
            if not free:
                return False
            self._note("kill all workers")
            for slot in slots:
                for life in tuple(slot.lives):
                    await self._rig.fleet.kill(life)
            await anyio.sleep(self._rng.uniform(0, 0.5))
            for slot in slots:
                await self._rig.fleet.start(slot)
        return True

    async def _terminate(self, *, twice: bool = False) -> bool:
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            self._note(f"stop {slot.lives[-1].name}{' twice' if twice else ''}")
            await self._rig.fleet.stop(slot.lives[-1], twice=twice)
            await self._rig.fleet.start(slot)
        return True

    async def _stop_twice(self) -> bool:
        return await self._terminate(twice=True)

    async def _stop_after_claim(self) -> bool:
        """SIGTERM as soon as the worker has one session more."""
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            life = slot.lives[-1]
            known = len(await self._sessions_of(life))
            with anyio.move_on_after(3.0):
                while True:
                    if len(await self._sessions_of(life)) > known:
                        break
                    await anyio.sleep(0.002)
            self._note(f"stop {life.name} after a claim")
            await self._rig.fleet.stop(life)
            await self._rig.fleet.start(slot)
        return True

    async def _pause(self, seconds: float) -> bool:
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            self._note(f"pause {slot.lives[-1].name} for {seconds:.1f} s")
            with self._rig.fleet.paused(slot.lives[-1]):
                await anyio.sleep(seconds)
        return True

    async def _pause_long(self) -> bool:
        return await self._pause(self._long_pause_s)

    async def _pause_short(self) -> bool:
        return await self._pause(self._rng.uniform(0.1, 0.9) * self._lease_s)

    async def _wake_alone(self) -> bool:
        """Pause a worker until others run its sessions, and kill those as it wakes.

        Whatever it still writes then, nobody else writes after it.
        """
        slots = self._rig.fleet.slots
        with self._hold(*(slot.name for slot in slots)) as free:
            lives = [life for slot in slots for life in slot.lives]
            if not free or not lives:
                return False
            sleeper = self._rng.choice(lives)
            self._note(f"pause {sleeper.name} for {self._long_pause_s:.1f} s, kill the others")
            with self._rig.fleet.paused(sleeper):
                await anyio.sleep(self._long_pause_s)
                for life in lives:
                    if life is not sleeper:
                        await self._rig.fleet.kill(life)
            await anyio.sleep(self._rng.uniform(0.5, 1.5) * self._lease_s)
            for slot in slots:
                if not slot.lives:
                    await self._rig.fleet.start(slot)
        return True

    async def _replace(self) -> bool:
        """Start a process of the same worker id, then stop the one before."""
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            old = slot.lives[-1]
            new = await self._rig.fleet.start(slot)
            self._note(f"replace {old.name} by {new.name}")
            await anyio.sleep(self._rng.uniform(0, 2))
            await self._rig.fleet.stop(old)
        return True

    async def _sessions_of(self, life: Life) -> tuple[str, ...]:
        """Return the sessions a process owns; none if it cannot be told now."""
        rig = self._rig
        try:
            records: Any = await rig.redis.hvals(rig.keys.workers)
            consumer = next(
                (
                    record.consumer
                    for record in (msgspec.json.decode(raw, type=WorkerRecord) for raw in records)
                    if record.pid == life.pid
                ),
                None,
            )
            if consumer is None:
                return ()
            rows: Any = await rig.redis.xpending_range(
                rig.keys.sessions, GROUP, "-", "+", 1_000, consumername=consumer
            )
            entries: Any = await rig.redis.xrange(rig.keys.sessions)
        except (RedisError, OSError):
            return ()
        owned = {row["message_id"] for row in rows}
        return tuple(fields[b"session"].decode() for entry, fields in entries if entry in owned)

    # -- Redis

    async def _redis_away(self, seconds: float) -> bool:
        with self._hold("redis") as free:
            if not free:
                return False
            self._note(f"Redis away for {seconds:.1f} s")
            down = time.time_ns() // 1_000_000
            await self._rig.server.kill()
            await anyio.sleep(seconds)
            await self._rig.server.restart()
            self.outages_ms.append((down, time.time_ns() // 1_000_000))
        return True

    async def _redis_restart(self) -> bool:
        return await self._redis_away(0.0)

    async def _redis_outage(self) -> bool:
        return await self._redis_away(self._rng.uniform(1.2, 2.5) * self._lease_s)

    async def _redis_full(self) -> bool:
        rig = self._rig
        with self._hold("redis") as free:
            if not free:
                return False
            self._note("Redis full")
            await patiently(rig.health, lambda: rig.redis.config_set("maxmemory", 1))
            try:
                await anyio.sleep(self._rng.uniform(0.2, 2.0))
            finally:
                await patiently(rig.health, lambda: rig.redis.config_set("maxmemory", 0))
        return True

    async def _script_flush(self) -> bool:
        self._note("scripts forgotten")
        await patiently(self._rig.health, self._rig.redis.script_flush)
        return True

    async def _redis_cut(self) -> bool:
        """Cut one worker's connections."""
        slot = self._slot()
        if slot is None:
            return False
        self._note(f"cut {slot.name} from Redis")
        slot.redis.cut_all()
        return True

    async def _client_kill(self) -> bool:
        """Cut everybody's connections, producers' too."""
        rig = self._rig
        self._note("client kill")
        try:
            await rig.redis.client_kill_filter(_type="normal", skipme=True)
        except (RedisError, OSError):
            return False
        return True

    async def _lost_reply(self) -> bool:
        slot = self._slot()
        if slot is None:
            return False
        mark = self._rng.choice(_MARKS)
        robbed = slot.redis.rob(mark)
        with anyio.move_on_after(5.0):
            await robbed.wait()
        slot.redis.spare()
        return robbed.is_set()

    async def _partition(self) -> bool:
        """Let a worker reach everything but Redis, and that without a word."""
        slot = self._slot()
        if slot is None:
            return False
        with self._hold(slot.name):
            seconds = self._rng.uniform(0.3, 3.0) * self._lease_s
            self._note(f"part {slot.name} from Redis for {seconds:.1f} s")
            await self._stall(slot.redis.links, seconds, flows=self._rng.random() < 0.5)
        return True

    async def _group_destroyed(self) -> bool:
        rig = self._rig
        self._note("group destroyed")
        await patiently(rig.health, lambda: rig.redis.xgroup_destroy(rig.keys.sessions, GROUP))
        return True

    async def _entry_deleted(self) -> bool:
        return await self._delete("one")

    async def _entries_trimmed(self) -> bool:
        return await self._delete("all")

    async def _delete(self, how: str) -> bool:
        """Delete entries of live sessions, then leave their owners alone until they are back."""
        rig = self._rig
        with self._hold("redis", *(slot.name for slot in rig.fleet.slots)) as free:
            if not free:
                return False
            await anyio.sleep(self._lease_s + 1.0)  # who was paused or cut is well again
            records: Any = await patiently(rig.health, lambda: rig.redis.hvals(rig.keys.workers))
            pids = {life.pid for slot in rig.fleet.slots for life in slot.lives}
            live = [
                record.consumer
                for record in (msgspec.json.decode(raw, type=WorkerRecord) for raw in records)
                if record.pid in pids
            ]
            try:
                gone: Any = await rig.redis.eval(_EMPTY, 1, rig.keys.sessions, GROUP, how, *live)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return False
            self._note(f"{gone} entries deleted")
            await anyio.sleep(self._lease_s)
        return bool(gone)

    # -- the STT service

    async def _stt_cut(self) -> bool:
        links = self._rig.stt_proxy.some(self._rng, self._rng.choice((0.1, 0.5, 1.0)))
        self._note(f"cut {len(links)} STT sockets")
        for link in links:
            link.cut()
        return bool(links)

    async def _stt_cut_at_byte(self) -> bool:
        links = self._rig.stt_proxy.some(self._rng, 0.5)
        self._note(f"cut {len(links)} STT sockets at some byte")
        for link in links:
            link.cut_after(self._rng.randint(0, 2_000))
        return bool(links)

    async def _stt_stall(self) -> bool:
        """Leave sockets half open until they are cut, or the worker has had enough.

        What comes later than a second is beyond what a worker tolerates, so a longer stall ends
        in a cut.
        """
        links = self._rig.stt_proxy.some(self._rng, 0.5)
        most_s = max(0.1, 0.9 - self._plan.latency_ms / 1_000)
        seconds = self._rng.choice((most_s / 2, most_s, 2.0, 4.0, 12.0))
        self._note(f"stall {len(links)} STT sockets for {seconds:.1f} s")
        await self._stall(set(links), seconds, flows=seconds <= most_s)
        return bool(links)

    async def _stt_outage(self, answer: bytes | None = None) -> bool:
        proxy = self._rig.stt_proxy
        with self._hold("stt") as free:
            if not free:
                return False
            seconds = self._rng.uniform(0.5, 5.0)
            self._note(f"STT outage of {seconds:.1f} s{', 503' if answer else ''}")
            with proxy.refusing(answer):
                proxy.cut_all()
                await anyio.sleep(seconds)
        return True

    async def _stt_503(self) -> bool:
        return await self._stt_outage(_NO_SERVICE)

    async def _stall(self, links: set[Link], seconds: float, *, flows: bool) -> None:
        """Let nothing through; then all that waited, or nothing ever."""
        stalled = set(links)
        for link in stalled:
            link.stall()
        await anyio.sleep(seconds)
        for link in stalled:
            if flows:
                link.flow()
            else:
                link.cut()


def clock(at_ms: int) -> str:
    """Write Unix milliseconds as the UTC time of day, as the workers' logs have it."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_ms // 1_000))}.{at_ms % 1_000:03d}"


class Fault(NamedTuple):
    """A kind of fault."""

    weight: float
    act: Callable[[Nemesis], Awaitable[bool]]
    """Breaks, waits and mends; false if there was nothing to break."""
    what: str


# The table may name what the class keeps to itself: they are one.
FAULTS: Final = {
    "kill": Fault(10, Nemesis._kill, "kill -9 of a worker"),
    "kill-all": Fault(1, Nemesis._kill_all, "kill -9 of every worker"),
    "stop": Fault(3, Nemesis._terminate, "SIGTERM of a worker"),
    "stop-twice": Fault(1, Nemesis._stop_twice, "SIGTERM, and again"),
    "stop-after-claim": Fault(2, Nemesis._stop_after_claim, "SIGTERM right after a claim"),
    "replace": Fault(2, Nemesis._replace, "a second process of the same id, then SIGTERM"),
    "pause-long": Fault(2, Nemesis._pause_long, "SIGSTOP for 8 s, or three leases"),
    "pause-short": Fault(3, Nemesis._pause_short, "SIGSTOP for less than a lease"),
    "wake-alone": Fault(1, Nemesis._wake_alone, "SIGSTOP of a worker until all others are dead"),
    "redis-restart": Fault(2, Nemesis._redis_restart, "kill -9 and restart of Redis"),
    "redis-outage": Fault(1, Nemesis._redis_outage, "Redis away for longer than the lease"),
    "redis-full": Fault(2, Nemesis._redis_full, "maxmemory reached"),
    "redis-cut": Fault(3, Nemesis._redis_cut, "a worker's Redis connections cut"),
    "client-kill": Fault(2, Nemesis._client_kill, "CLIENT KILL of all connections"),
    "lost-reply": Fault(6, Nemesis._lost_reply, "a reply of Redis lost"),
    "partition": Fault(3, Nemesis._partition, "a worker parted from Redis, silently"),
    "script-flush": Fault(1, Nemesis._script_flush, "SCRIPT FLUSH"),
    "group-destroyed": Fault(1, Nemesis._group_destroyed, "XGROUP DESTROY"),
    "entry-deleted": Fault(1, Nemesis._entry_deleted, "XDEL of a live session's entry"),
    "entries-trimmed": Fault(1, Nemesis._entries_trimmed, "all entries of live sessions trimmed"),
    "stt-cut": Fault(8, Nemesis._stt_cut, "STT sockets reset"),
    "stt-cut-at-byte": Fault(5, Nemesis._stt_cut_at_byte, "STT sockets reset inside a message"),
    "stt-stall": Fault(3, Nemesis._stt_stall, "STT sockets half open"),
    "stt-outage": Fault(2, Nemesis._stt_outage, "STT refuses connections"),
    "stt-503": Fault(1, Nemesis._stt_503, "STT answers 503"),
}
"""Every fault, by name."""


def check_faults(names: tuple[str, ...]) -> None:
    """Raise TurnbusError for a name that is not in the table."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise TurnbusError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
