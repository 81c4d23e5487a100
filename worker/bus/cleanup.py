"""Cleanup of consumers and streams that no worker owns.

Every half minute each worker removes consumers of workers that were killed while they owned
nothing. Once an hour one worker removes audio without an announced session, and restores the
missing entries of live sessions.
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
from worker.bus.lost_entries import OrphanRecovery
from worker.bus.ownership import SessionLeases
from worker.text import pluralize

log = logging.getLogger(__name__)

CONSUMER_INTERVAL_S = 30.0
"""Interval between checks of the group's consumers."""

AUDIO_INTERVAL_S = 3_600.0
"""Interval between checks of audio streams, and minimum age of the last entry of a removed one."""

_PAGE = 1_000


class Cleaner:
    """Cleans up on behalf of one worker. Several may run at once."""

    def __init__(self, redis: Redis, keys: Keys, leases: SessionLeases) -> None:
        self._redis = redis
        self._keys = keys
        self._leases = leases
        self._recovery = OrphanRecovery(redis, keys, leases)

    async def run(self) -> None:
        """Clean up until cancelled. The next round repeats what failed."""
        # Workers that start together do not check audio at the same time.
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
                log.info("cleanup failed, retrying later: %s", describe(error))

    async def sweep_consumers(self, idle_s: float) -> int:
        """Remove consumers that own nothing and are idle for `idle_s`; return how many."""
        removed = 0
        for name, abandoned in (await self._leases.consumers(idle_s)).items():
            if abandoned and name not in (self._leases.consumer, RELEASED):
                removed += await self._leases.delete_consumer(name)
        if removed:
            log.info("removed %s of stopped workers", pluralize(removed, "consumer"))
        return removed

    async def begin(self, age_s: float) -> bool:
        """Return whether to check audio; False if another worker began to within `age_s`."""
        key, mine = self._keys.sweep, self._leases.consumer
        return bool(await self._redis.set(key, mine, px=int(age_s * 900), nx=True))

    async def sweep_audio(self, age_s: float) -> int:
        """Remove streams without a session and without a new entry for `age_s`; return how many."""
        named = re.compile(rf"{re.escape(self._keys.prefix)}:\{{([^}}]+)\}}:audio:(.+)".encode())
        found = set()
        async for audio in self._redis.scan_iter(
            match=self._keys.audio("*", "*"), count=_PAGE, _type="STREAM"
        ):
            if match := named.fullmatch(audio):
                found.add((match[1], match[2]))
        removed = 0
        # The announced sessions are read after the scan: an old stream that is not among them was
        # not announced while it was younger.
        if found:
            async for _, fields in iter_entries(self._redis, self._keys.sessions):
                found.discard((fields.get(b"lane", b"0"), fields.get(b"session", b"")))
        for lane, session in found:
            names = lane.decode("utf-8", "replace"), session.decode("utf-8", "replace")
            removed += await scripts.remove_audio(
                self._redis,
                state_key=self._keys.state(*names),
                audio_key=self._keys.audio(*names),
                min_age_ms=int(age_s * 1000),
            )
        if removed:
            log.warning("removed %s without a session entry", pluralize(removed, "audio stream"))
        return removed
