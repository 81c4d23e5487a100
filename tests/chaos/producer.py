"""Producer of one session of a chaos run. It sends every chunk exactly once."""

import random
from typing import Any, Final, NamedTuple

import anyio
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from schemas.audio import Encoding
from tests.chaos.script import Chunk, ScriptedSession, chunks
from worker.bench.checker import Appended
from worker.bus.client.connection import is_outage
from worker.local.emulator.engines.script import synthesize_silence

_TRY_AGAIN_S: Final = 0.03
"""Delay before a retry. It is short, so that an outage does not cause a longer pause."""

_RESENT: Final = 4
"""Maximum number of entries that are appended again."""

LATE_MS: Final = 400
"""Maximum delay of a chunk; after a slightly longer delay a worker sends filler."""


class InterruptedWord(NamedTuple):
    """A word with a producer pause inside, from `from_ms` to `to_ms`."""

    word: int
    from_ms: int
    to_ms: int


class ScriptedProducer:
    """Sends the audio of a scripted session in real time, and retries during outages."""

    def __init__(self, redis: Redis, keys: Keys, script: ScriptedSession) -> None:
        self._redis = redis
        self._keys = keys
        self._rng = random.Random(f"{script.seed} speaker")
        self._stream = keys.audio(script.lane, script.name)
        self._appended: list[dict[str, bytes | str]] = []
        self._added = 0
        self.script: Final = script
        self.torn: Final[list[InterruptedWord]] = []
        """Words that were interrupted by an outage or a delay of this machine."""
        self.chunks = 0
        self.appended: Final[list[Appended]] = []
        """Every chunk, with the time at which Redis received it."""
        self.again = 0
        """Number of entries appended a second time, which the worker must drop."""

    async def run(self) -> None:
        """Announce the session, send its audio, end it. Raises RedisError if audio is rejected."""
        script = self.script
        if not script.announced_late:
            await self._announce()
        began = anyio.current_time()
        last_ms = 0
        bytes_per_ms = len(synthesize_silence(1_000, script.audio)) / 1_000
        size = 0
        said = list(chunks(script))
        for nth, chunk in enumerate(said):
            await anyio.sleep_until(began + chunk.due_s)
            at_ms = await self._say(nth, chunk, restarted=nth >= len(said) // 2)
            if chunk.torn is not None and at_ms - last_ms > script.chunk_ms + LATE_MS:
                self.torn.append(InterruptedWord(chunk.torn, last_ms, at_ms))
            last_ms = at_ms
            size += len(chunk.audio)
            self.appended.append(Appended(size / bytes_per_ms, at_ms))
            if nth == 0 and script.announced_late:
                await self._announce()
        await anyio.sleep(script.linger_s)
        try:
            await self._append(encode_audio(AudioEntry(end=True)))
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            # The reply to an earlier attempt was lost, and the session has ended since.

    async def _announce(self) -> None:
        script = self.script
        entry = SessionEntry(
            session=script.name,
            encoding=Encoding(script.audio.encoding),
            sample_rate=script.audio.sample_rate,
            lane=script.lane,
            out=script.out,
        )
        fields: Any = encode_session(entry)
        while True:
            # If a reply was lost, the retry is rejected as a duplicate.
            try:
                await self._redis.xadd(self._keys.sessions, fields)
            except (RedisError, OSError) as error:
                if not is_outage(error):
                    raise
                await anyio.sleep(_TRY_AGAIN_S)
            else:
                return

    async def _say(self, nth: int, chunk: Chunk, *, restarted: bool) -> int:
        """Append a chunk; return the time at which Redis received it, in Unix milliseconds."""
        mode = self.script.mode
        entry = AudioEntry(audio=chunk.audio)
        if mode != "plain":
            src = "b" if mode == "restarting" and restarted else "a"
            entry = AudioEntry(audio=chunk.audio, seq=nth, src=src)
        fields = encode_audio(entry)
        at_ms = await self._append(fields)
        self.chunks += 1
        if mode == "resending":
            self._appended = [*self._appended[1 - _RESENT :], fields]
            if self._rng.random() < 0.1:
                for known in self._appended[-self._rng.randint(1, _RESENT) :]:
                    await self._append(known)
                    self.again += 1
        return at_ms

    async def _append(self, entry: dict[str, bytes | str]) -> int:
        fields: Any = entry
        while True:
            try:
                added: Any = await self._redis.xadd(self._stream, fields)
            except OutOfMemoryError:
                pass
            except (RedisError, OSError) as error:
                if not is_outage(error):
                    raise
                if landed := await self._landed():
                    added = landed
                    break
            else:
                break
            await anyio.sleep(_TRY_AGAIN_S)
        self._added += 1
        return int(added.partition(b"-")[0])

    async def _landed(self) -> bytes | None:
        """Return the id of an append whose reply was lost; None if Redis did not execute it."""
        while True:
            try:
                info: Any = await self._redis.xinfo_stream(self._stream)
            except ResponseError as error:
                if str(error).startswith("no such key"):
                    return None
                if not is_outage(error):
                    raise
            except (RedisError, OSError) as error:
                if not is_outage(error):
                    raise
            else:
                made: int = info["entries-added"]
                last: bytes = info["last-generated-id"]
                return last if made > self._added else None
            await anyio.sleep(_TRY_AGAIN_S)
