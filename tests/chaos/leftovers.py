"""Checks the Redis keys that remain after a chaos run."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from redis.asyncio import Redis

from schemas.keys import ENDED, GROUP, RELEASED, Keys
from tests.chaos.script import ScriptedSession
from worker.bench.checker import Violation
from worker.bus.liveness import STALE_CONSUMER_S

_MAY_STAY: Final = ("sessions", "lanes", "dead", "sweep", "search", "breaker:*", "{*}:turns")
_OF_A_CHECK: Final = "{*}:check:*"
"""Keys of a permission check; they expire if a worker is killed during the check."""

_SWEPT_S: Final = 30.0
"""Maximum time after `STALE_CONSUMER_S` until workers remove a dead consumer."""

_REFUSALS: Final = ("duplicate", "ended")
"""Reasons for rejecting an announcement that was repeated because its reply was lost."""


async def leftovers(
    redis: Redis, keys: Keys, scripts: Sequence[ScriptedSession]
) -> list[Violation]:
    """Return the violations in Redis after every session ended and every worker stopped."""
    wrong: list[str] = []
    if entries := await redis.xlen(keys.sessions):
        wrong.append(f"{entries} entries in {keys.sessions}")
    groups: Any = await redis.xinfo_groups(keys.sessions)
    wrong += [f"{group['pending']} entries pending" for group in groups if group["pending"]]
    wrong += await _consumers(redis, keys)
    own = {
        keys.session_turns(script.lane, script.name)
        for script in scripts
        if script.out == "session"
    }
    wrong += await _keys(redis, keys, own)
    for script in scripts:
        wrong += await _session(redis, keys, script)
    dead: Any = await redis.xrange(keys.dead)
    wrong += [
        f"refused: {fields}" for _, fields in dead if fields[b"reason"].decode() not in _REFUSALS
    ]
    return [Violation("", "bus", detail) for detail in wrong]


async def _consumers(redis: Redis, keys: Keys) -> list[str]:
    rows: Any = await redis.xinfo_consumers(keys.sessions, GROUP)
    return [
        f"consumer {name} is left"
        for row in rows
        if (name := row["name"].decode()) != RELEASED
        and (row["pending"] or row["idle"] > (STALE_CONSUMER_S + _SWEPT_S) * 1_000)
    ]


async def _keys(redis: Redis, keys: Keys, own: Collection[str]) -> list[str]:
    found = []
    async for raw in redis.scan_iter(f"{keys.prefix}:*", count=1_000):
        name = raw.decode().removeprefix(f"{keys.prefix}:")
        known = (*_MAY_STAY, "{*}:state:*", "{*}:audio:*")
        if any(fnmatchcase(name, pattern) for pattern in known) or raw.decode() in own:
            continue
        if fnmatchcase(name, _OF_A_CHECK) and await redis.ttl(raw) > 0:
            continue
        found.append(f"key {name} is left")
    return found


async def _session(redis: Redis, keys: Keys, script: ScriptedSession) -> list[str]:
    audio, state = keys.audio(script.lane, script.name), keys.state(script.lane, script.name)
    wrong = []
    kind: Any = await redis.type(audio)
    if kind != b"string" or await redis.get(audio) != ENDED:
        wrong.append(f"{audio} is a {kind.decode()}, not the tombstone")
    if await redis.hget(state, "status") != b"ended":
        wrong.append(f"{state} does not have the status ended")
    if await redis.hexists(state, "snapshot"):
        wrong.append(f"{state} keeps its snapshot")
    stay = [key for key in (audio, state) if await redis.ttl(key) <= 0]
    return wrong + [f"{key} does not expire" for key in stay]
