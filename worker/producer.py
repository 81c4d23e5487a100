"""A producer: announces a session and appends its audio, as an application does."""

from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from worker.bus.client.connection import RedisHealth, unmoved
from worker.errors import TurnbusError


class Producer:
    """Appends one session's audio.

    Each append carries `seq` and `src`, so a retry after a lost reply is harmless. Appends are
    retried during Redis outages. Raises `TurnbusError` once the session has ended.
    """

    def __init__(self, redis: Redis, keys: Keys, entry: SessionEntry) -> None:
        self._redis = redis
        self._keys = keys
        self._entry = entry
        self.stream = keys.audio(entry.lane, entry.session)
        """Key of the session's audio stream."""
        self._health = RedisHealth()
        self._src = uuid4().hex
        self._begun = False
        self.chunks = 0
        self.bytes = 0

    @property
    def seconds(self) -> float:
        """Duration of the audio appended so far."""
        return self.bytes / self._entry.encoding.width / self._entry.sample_rate

    async def announce(self) -> str:
        """Announce the session and return its entry's id. Redis errors are raised."""
        fields: Any = encode_session(self._entry)  # redis-py's field type is invariant
        added: Any = await self._redis.xadd(self._keys.sessions, fields)
        entry_id: str = added.decode()
        return entry_id

    async def append(self, audio: bytes) -> None:
        """Append one chunk."""
        if not await self._add(AudioEntry(audio=audio, seq=self.chunks, src=self._src)):
            raise TurnbusError(f"session {self._entry.session} has ended: it takes no more audio")
        self.chunks += 1
        self.bytes += len(audio)

    async def end(self) -> None:
        """End the session; a session that has already ended is not an error."""
        await self._add(AudioEntry(end=True))

    async def _add(self, entry: AudioEntry) -> bool:
        """Append; False when the session has ended."""
        fields: Any = encode_audio(entry)
        # Only the first append may create the stream. Later, a missing stream means that the
        # session ended or was lost, and no worker would read a new one.
        begun = self._begun
        try:
            added: Any = await self._health.retry(
                lambda: unmoved(lambda: self._redis.xadd(self.stream, fields, nomkstream=begun)),
            )
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return False
            raise
        if added is None:
            raise TurnbusError(
                f"the audio of session {self._entry.session} is gone from Redis: "
                "it ended some time ago, or Redis lost its data"
            )
        self._begun = True
        return True
