"""Load of a benchmark: one producer that sends all sessions in real time."""

from array import array
from typing import Any, Final
from uuid import uuid4

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from worker.bench.plan import SLOT_MS, Plan, Speech, Start, starts
from worker.bench.raw_redis import RawConnection
from worker.bus.client.connection import describe
from worker.errors import BusUnavailableError, TurnbusError


class BenchProducer:
    """State of one session at its producer."""

    def __init__(self, session: str, keys: Keys, start: Start, cycle: int) -> None:
        self.session = session
        self._cycle = cycle
        self.start = start
        self.stream = keys.audio("0", session)
        self.command: Final = (b"XADD", self.stream.encode(), b"*")
        """Start of a command that appends an entry."""
        self.ended = False
        self.appended_ms: Final = array("q")
        """Time each chunk was appended, by the Redis clock: Unix milliseconds."""

    @property
    def appended(self) -> int:
        """Number of speech chunks appended so far."""
        return max(0, len(self.appended_ms) - self.start.silent_chunks)

    @property
    def finished(self) -> bool:
        """Whether the session has reached the end of its life."""
        return len(self.appended_ms) >= self.start.life

    @property
    def at_pause(self) -> bool:
        """Whether the last utterance and the pause after it are complete."""
        return not self.ended and self.appended > 0 and self.appended % self._cycle == 0

    def spoken_ms(self, chunk: int) -> int:
        """Return the time a speech chunk was appended."""
        return self.appended_ms[self.start.silent_chunks + chunk]


class LoadGenerator:
    """Appends the audio of all sessions, with one pipeline per slot."""

    def __init__(self, redis: Redis, port: int, keys: Keys, plan: Plan, speech: Speech) -> None:
        self._redis = redis
        self._port = port
        self._keys = keys
        self._plan = plan
        self.speakers: Final[list[BenchProducer]] = []
        """All sessions so far, oldest first."""
        self._slots_per_chunk = plan.chunk_ms // SLOT_MS
        self._phases: list[list[BenchProducer]] = [[] for _ in range(self._slots_per_chunk)]
        for start in starts(plan):
            self._phases[start.slot % self._slots_per_chunk].append(self._next(start))
        # The fields of every chunk are encoded once: `seq` is the index in this list for every
        # session. A session with less initial silence starts at a later index.
        self._silence = max(speaker.start.silent_chunks for speaker in self.speakers)
        audio = [speech.silence] * self._silence + speech.chunks
        src = uuid4().hex
        self._fields = [
            _fields(AudioEntry(audio=chunk, seq=seq, src=src)) for seq, chunk in enumerate(audio)
        ]
        self.chunks = 0
        """Number of chunks appended so far."""
        self.slots_late_ms: Final = array("d")
        """Delay of each slot's appends, in milliseconds."""

    @property
    def speaking(self) -> int:
        """Number of sessions that have started and not ended."""
        return sum(
            1 for phase in self._phases for each in phase if each.appended_ms and not each.ended
        )

    @property
    def over(self) -> bool:
        """Whether the last sessions have ended."""
        return all(speaker.ended for phase in self._phases for speaker in phase)

    async def run(self, began: float) -> None:
        """Produce from `began`, on the event loop's clock, until all utterances are complete.

        Raises TurnbusError if a session ends prematurely, BusUnavailable if Redis fails.
        """
        try:
            async with RawConnection.connect("127.0.0.1", self._port) as wire:
                await self._produce(began, wire)
        except (RedisError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise BusUnavailableError(f"the embedded Redis: {describe(error)}") from error

    async def _produce(self, began: float, wire: RawConnection) -> None:
        last = round((self._plan.warmup + self._plan.seconds) * 1_000 / SLOT_MS)
        slot = 0
        while not self.over:
            due = began + slot * SLOT_MS / 1_000
            await anyio.sleep_until(due)
            self.slots_late_ms.append((anyio.current_time() - due) * 1_000)
            phase = self._phases[slot % self._slots_per_chunk]
            for place, speaker in enumerate(phase):
                if speaker.at_pause and (slot >= last or speaker.finished):
                    await self._end(speaker)
                    if slot < last:
                        phase[place] = self._next(Start(slot, 0, self._plan.life_chunks))
            speakers = [each for each in phase if each.start.slot <= slot and not each.ended]
            if speakers:
                await self._append(speakers, wire)
            slot += 1

    def _next(self, start: Start) -> BenchProducer:
        speaker = BenchProducer(f"bench-{len(self.speakers)}", self._keys, start, self._plan.cycle)
        self.speakers.append(speaker)
        return speaker

    async def _end(self, speaker: BenchProducer) -> None:
        end: Any = encode_audio(AudioEntry(end=True))
        await self._redis.xadd(speaker.stream, end)
        speaker.ended = True

    async def _append(self, speakers: list[BenchProducer], wire: RawConnection) -> None:
        """Append the next chunk of each session; announce new sessions."""
        commands = []
        for speaker in speakers:
            if not speaker.appended_ms:
                await self._announce(speaker)
            seq = self._silence - speaker.start.silent_chunks + len(speaker.appended_ms)
            commands.append(speaker.command + self._fields[seq])
        for speaker, reply in zip(speakers, await wire.execute(commands), strict=True):
            if not isinstance(reply, bytes):
                raise TurnbusError(f"session {speaker.session} rejects audio: {reply}")
            speaker.appended_ms.append(int(reply.partition(b"-")[0]))
        self.chunks += len(speakers)

    async def _announce(self, speaker: BenchProducer) -> None:
        fields: Any = encode_session(
            SessionEntry(
                session=speaker.session,
                encoding=self._plan.encoding,
                sample_rate=self._plan.sample_rate,
            )
        )
        await self._redis.xadd(self._keys.sessions, fields)


def _fields(entry: AudioEntry) -> tuple[bytes, ...]:
    """Return an entry's field names and values as a flat tuple."""
    return tuple(
        part.encode() if isinstance(part, str) else part
        for field in encode_audio(entry).items()
        for part in field
    )
