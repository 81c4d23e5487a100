"""The sweeper: takes off the bus what nobody else will.

Consumers of workers that were killed while they owned nothing, each half minute; audio that nobody
ever announced, once an hour, by one worker at a time. It also announces again what is live and is
announced no more, whatever became of its entry.
"""

import logging
import random
import re
import time

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.keys import RELEASED, Keys
from worker.bus import scripts
from worker.bus.client.connection import describe
from worker.bus.inspection import iter_entries
from worker.bus.liveness import STALE_CONSUMER_S
from worker.bus.ownership import SessionOwnership
from worker.bus.recovery import OrphanRecovery
from worker.plurals import counted

log = logging.getLogger(__name__)

CONSUMER_INTERVAL_S = 30.0
"""How often the group is looked through."""

AUDIO_INTERVAL_S = 3_600.0
"""How often audio is looked through, and the age of its last entry after which it is nobody's."""

_PAGE = 1_000


class Cleaner:
    """Sweeps on behalf of one worker. Safe to run twice at once."""

    def __init__(self, redis: Redis, keys: Keys, intake: SessionOwnership) -> None:
        self._redis = redis
        self._keys = keys
        self._ownership = intake
        self._recovery = OrphanRecovery(redis, keys, intake)

    async def run(self) -> None:
        """Sweep until cancelled; what fails is left for the next time."""
        # Not all workers that started together at once.
        audio_at = time.monotonic() + random.uniform(0, AUDIO_INTERVAL_S)  # noqa: S311 - spreads load
        while True:
            await anyio.sleep(CONSUMER_INTERVAL_S)
            try:
                await self.sweep_consumers(STALE_CONSUMER_S)
                if time.monotonic() >= audio_at:
                    audio_at += AUDIO_INTERVAL_S
                    if await self.begin(AUDIO_INTERVAL_S):
                        await self.sweep_audio(AUDIO_INTERVAL_S)
                        await self._recovery.recover_all()
            except (RedisError, OSError) as error:
                log.info("not swept: %s", describe(error))

    async def sweep_consumers(self, idle_s: float) -> int:
        """Remove consumers that own nothing and did nothing for so long; return how many."""
        removed = 0
        for name, abandoned in (await self._ownership.consumers(idle_s)).items():
            if abandoned and name not in (self._ownership.consumer, RELEASED):
                removed += await self._ownership.delete_consumer(name)
        if removed:
            log.info("removed %s of workers long gone", counted(removed, "consumer"))
        return removed

    async def begin(self, age_s: float) -> bool:
        """Say whether to sweep; not if another worker has swept, or sweeps, within `age_s`."""
        key, mine = self._keys.sweep, self._ownership.consumer
        return bool(await self._redis.set(key, mine, px=int(age_s * 900), nx=True))

    async def sweep_audio(self, age_s: float) -> int:
        """Remove streams without a session whose last entry is that old; return how many."""
        named = re.compile(rf"{re.escape(self._keys.prefix)}:\{{([^}}]+)\}}:audio:(.+)".encode())
        found = set()
        async for audio in self._redis.scan_iter(
            match=self._keys.audio("*", "*"), count=_PAGE, _type="STREAM"
        ):
            if match := named.fullmatch(audio):
                found.add((match[1], match[2]))
        removed = 0
        # Who is announced is asked last: then what was not, and is found old by the script, was
        # not announced while it was younger.
        for lane, session in found - await self._announced() if found else ():
            names = lane.decode("utf-8", "replace"), session.decode("utf-8", "replace")
            keys = [self._keys.state(*names), self._keys.audio(*names)]
            removed += await scripts.SWEEP(self._redis, keys, [int(age_s * 1000)])
        if removed:
            log.warning("removed %s that nobody announced", counted(removed, "audio stream"))
        return removed

    async def _announced(self) -> set[tuple[bytes, bytes]]:
        """Return lane and session of every session entry."""
        return {
            (fields.get(b"lane", b"0"), fields.get(b"session", b""))
            async for _, fields in iter_entries(self._redis, self._keys.sessions)
        }
