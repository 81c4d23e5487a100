"""Appends the entries of one session to Redis, in order, through outages.

The first append announces the session, unless its audio stream exists: then the session is live,
and its producer came back after an outage or a restart.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.exceptions import MovedError, ReadOnlyError, RedisError, ResponseError, TryAgainError

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import RedisHealth, describe, unmoved
from worker.errors import BusUnavailableError
from worker.ingest.pipeline import AppendPipeline, Fields
from worker.telemetry.traces import ProducerSpan


class SessionOverError(Exception):
    """The session takes no more entries. `expected` is false if Redis or its setup is at fault."""

    def __init__(self, message: str, *, expected: bool) -> None:
        super().__init__(message)
        self.expected = expected


CALL_TTL_S = 86_400
"""Time for which Redis remembers which gateway carries a call."""


class SessionAppender:
    """Appends one session's entries.

    A batch whose reply is lost is appended again. Workers drop what repeats a `seq`; `config` and
    `end` may be repeated.
    """

    def __init__(
        self,
        redis: Redis,
        pipeline: AppendPipeline,
        keys: Keys,
        entry: SessionEntry,
        health: RedisHealth,
        src: str,
    ) -> None:
        self._redis = redis
        self._pipeline = pipeline
        self._sessions = keys.sessions
        self._stream = keys.audio(entry.lane, entry.session)
        self._producer = keys.producer(entry.lane, entry.session)
        self._entry = entry
        self._health = health
        self._src = src
        self._announced = False
        self._exists = False  # whether the audio stream is known to exist
        self._found_end = False

    @property
    def found_end(self) -> bool:
        """Whether the session had ended before the first append."""
        return self._found_end

    async def append(self, entries: Sequence[AudioEntry]) -> None:
        """Append entries, all or none with each attempt; retry during outages.

        Raises `SessionOverError` if the session takes none.
        """
        batch: list[Fields] = [dict(encode_audio(entry)) for entry in entries]
        try:
            await self._health.retry(lambda: self._attempt(batch))
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise SessionOverError("the session has ended", expected=True) from error
            raise SessionOverError(describe(error), expected=False) from error
        except (RedisError, BusUnavailableError) as error:
            raise SessionOverError(describe(error), expected=False) from error

    async def is_current(self) -> bool:
        """Return whether no other gateway has continued the session; wait during outages.

        Raises `SessionOverError` if Redis refuses the answer.
        """
        try:
            src: Any = await self._health.retry(
                lambda: unmoved(lambda: self._redis.get(self._producer))
            )
        except (RedisError, BusUnavailableError) as error:
            raise SessionOverError(describe(error), expected=False) from error
        return src in (None, self._src.encode())

    async def _attempt(self, batch: list[Fields]) -> None:
        if not self._announced:
            self._exists = await self._find_stream()
            await unmoved(lambda: self._redis.set(self._producer, self._src, ex=CALL_TTL_S))
            if not self._exists:
                await self._announce()
            self._announced = True
        try:
            await self._send(batch)
        except (exceptions.ConnectionError, exceptions.TimeoutError, ReadOnlyError, OSError):
            # Before the stream exists, Redis may have lost the announcement: a restart without
            # its data, a failover. Workers reject a second one.
            self._announced = self._exists
            raise
        self._exists = True
        if "end" in batch[-1]:
            await unmoved(lambda: self._redis.delete(self._producer))

    async def _announce(self) -> None:
        span = ProducerSpan(self._entry.session)
        fields: Fields = dict(encode_session(msgspec.structs.replace(self._entry, **span.fields)))
        added: Any = None
        try:
            added = await unmoved(lambda: self._redis.xadd(self._sessions, fields))
        finally:
            span.sent(added.decode() if added else "")

    async def _find_stream(self) -> bool:
        """Return whether the audio stream exists; raises `SessionOverError` after its end."""
        kind: Any = await unmoved(lambda: self._redis.type(self._stream))
        if kind not in (b"stream", b"none"):
            self._found_end = True
            raise SessionOverError("the session has ended", expected=True)
        return bool(kind == b"stream")

    async def _send(self, batch: list[Fields]) -> None:
        # Only the first append may create the stream. Later, a missing stream means that the
        # session ended or was lost, and no worker would read a new one.
        added = await unmoved(lambda: self._append(batch))
        if None in added:
            raise SessionOverError(
                "its audio is gone from Redis: it ended some time ago, or Redis lost its data",
                expected=False,
            )

    async def _append(self, batch: list[Fields]) -> list[Any]:
        try:
            return await self._pipeline.append(self._stream, batch, nomkstream=self._exists)
        except MovedError as error:  # in a transaction; a cluster client follows all others
            if not isinstance(self._redis, ClusterClient):
                raise
            self._redis.invalidate_slots()
            raise TryAgainError(f"the slot of {self._stream} has moved") from error
