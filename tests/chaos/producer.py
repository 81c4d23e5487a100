"""Producer of one session of a chaos run. It sends every chunk exactly once."""

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from schemas.audio import Encoding
from tests.chaos.script import Chunk, ScriptedSession, chunks
from tests.chaos.signals import FORCED_END_SHARE, MARK_SHARE, Signals
from worker.bench.checker import Appended
from worker.bench.producer import MAX_DELAY_MS
from worker.bus.client.connection import is_outage
from worker.local.emulator.engines.script import synthesize_silence

T = TypeVar("T")

_RETRY_S: Final = 0.03
"""Delay before a retry. It is short, so that an outage does not cause a longer pause."""

_MAX_RESENT: Final = 4
"""Maximum number of entries that are appended again."""


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
        self._signal_rng = random.Random(f"{script.seed} signals")
        self._stream = keys.audio(script.lane, script.name)
        self._appended: list[dict[str, bytes | str]] = []
        self._added = 0
        self.script: Final = script
        self.torn: Final[list[InterruptedWord]] = []
        """Words that were interrupted by an outage or a delay of this machine."""
        self.appended: Final[list[Appended]] = []
        """Every chunk, with the time at which Redis received it."""
        self.signals: Final = Signals()

    async def run(self) -> None:
        """Announce the session, send its audio, end it. Raises RedisError if audio is rejected."""
        script = self.script
        if not script.announced_late:
            await self._announce()
        began = anyio.current_time()
        last_ms = 0
        bytes_per_ms = len(synthesize_silence(1_000, script.audio)) / 1_000
        size = 0
        all_chunks = list(chunks(script))
        for nth, chunk in enumerate(all_chunks):
            await anyio.sleep_until(began + chunk.due_s)
            size += len(chunk.audio)
            torn = nth + 1 < len(all_chunks) and all_chunks[nth + 1].torn is not None
            signals = self._draw_signals(size / bytes_per_ms, inside_word=torn)
            restarted = nth >= len(all_chunks) // 2
            at_ms = await self._append_chunk(nth, chunk, signals, restarted=restarted)
            if chunk.torn is not None and at_ms - last_ms > script.chunk_ms + MAX_DELAY_MS:
                self.torn.append(InterruptedWord(chunk.torn, last_ms, at_ms))
            last_ms = at_ms
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
            **msgspec.structs.asdict(script.wishes),
        )
        fields: Any = encode_session(entry)
        # If a reply was lost, the retry is rejected as a duplicate.
        await self._retry(lambda: self._redis.xadd(self._keys.sessions, fields))

    def _draw_signals(self, end_ms: float, *, inside_word: bool) -> AudioEntry:
        """Draw the signals of the chunk that ends there, as an entry without audio."""
        drawn, rng = AudioEntry(), self._signal_rng
        if rng.random() < MARK_SHARE:
            mark = {"nth": len(self.signals.marks)}
            self.signals.marks.append(mark)
            drawn = msgspec.structs.replace(drawn, mark=mark)
        if not inside_word and rng.random() < FORCED_END_SHARE:
            self.signals.forced_ends_ms.append(end_ms)
            drawn = msgspec.structs.replace(drawn, turn_end=True)
        return drawn

    async def _append_chunk(
        self, nth: int, chunk: Chunk, signals: AudioEntry, *, restarted: bool
    ) -> int:
        """Append a chunk; return the time at which Redis received it, in Unix milliseconds."""
        mode = self.script.mode
        entry = msgspec.structs.replace(signals, audio=chunk.audio)
        if mode != "plain":
            src = "b" if mode == "restarting" and restarted else "a"
            entry = msgspec.structs.replace(entry, seq=nth, src=src)
        fields = encode_audio(entry)
        at_ms = await self._append(fields)
        if mode == "resending":
            self._appended = [*self._appended[1 - _MAX_RESENT :], fields]
            if self._rng.random() < 0.1:
                for known in self._appended[-self._rng.randint(1, _MAX_RESENT) :]:
                    await self._append(known)
        return at_ms

    async def _append(self, entry: dict[str, bytes | str]) -> int:
        fields: Any = entry
        added: Any = None
        while not added:
            try:
                added = await self._redis.xadd(self._stream, fields)
            except OutOfMemoryError:
                await anyio.sleep(_RETRY_S)
            except (RedisError, OSError) as error:
                if not is_outage(error):
                    raise
                if not (added := await self._added_id()):
                    await anyio.sleep(_RETRY_S)
        self._added += 1
        return int(added.partition(b"-")[0])

    async def _added_id(self) -> bytes | None:
        """Return the id of an append whose reply was lost; None if Redis did not execute it."""
        try:
            info: Any = await self._retry(lambda: self._redis.xinfo_stream(self._stream))
        except ResponseError as error:
            if str(error).startswith("no such key"):
                return None
            raise
        last: bytes = info["last-generated-id"]
        return last if info["entries-added"] > self._added else None

    async def _retry(self, command: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a command, which is repeated during an outage."""
        while True:
            try:
                return await command()
            except (RedisError, OSError) as error:
                if not is_outage(error):
                    raise
            await anyio.sleep(_RETRY_S)
