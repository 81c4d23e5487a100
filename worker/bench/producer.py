"""Producers of the benchmarks: they append the audio of all sessions in real time."""

from array import array
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from itertools import pairwise
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar
from uuid import uuid4

import anyio
from anyio.abc import ByteStream
from hiredis import Reader, pack_command
from redis.exceptions import RedisError

from schemas import AudioEntry, Encoding, Keys, SessionEntry, encode_audio, encode_session
from worker.bench.plan import SLOT_MS, LoadPlan
from worker.bench.speech import GOLDEN, Speech, Start, starts
from worker.bus.client.connection import describe
from worker.errors import BusUnavailableError, TurnbusError
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

AUDIO: Final = AudioFormat("pcm_s16le", 16_000)
"""Audio of the sessions of a recovery benchmark."""

MAX_DELAY_MS: Final = 400
"""Maximum delay of a chunk; after a slightly longer delay a worker sends filler."""

_BYTES_PER_MS: Final = 32
_END: Final = (b"end", b"1")
_READ_BYTES: Final = 64 * 1024

Command = tuple[bytes, ...]


class RawConnection:
    """Minimal connection to Redis, for thousands of chunks a second; `connect` creates one.

    A client library takes many times as long for each command, and would use CPU that the worker
    needs.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reader = Reader(notEnoughData=Ellipsis)

    @classmethod
    @asynccontextmanager
    async def connect(cls, host: str, port: int) -> AsyncIterator[Self]:
        """Connect until the block ends. Raises OSError if that fails."""
        async with await anyio.connect_tcp(host, port) as stream:
            yield cls(stream)

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write, and return their replies.

        An error reply is returned as an exception object. Raises anyio's EndOfStream or
        BrokenResourceError if the connection is lost.
        """
        # hiredis declares the command as a tuple of one part.
        packed = map(pack_command, commands)  # type: ignore[arg-type]
        await self._stream.send(b"".join(packed))
        replies: list[Any] = []
        while len(replies) < len(commands):
            self._reader.feed(await self._stream.receive(_READ_BYTES))
            while (reply := self._reader.gets()) is not Ellipsis:
                replies.append(reply)
        return replies


class _Session(Protocol):
    """A session of a producer."""

    @property
    def name(self) -> str:
        """Id of the session."""
        ...

    @property
    def keyterms(self) -> tuple[str, ...]:
        """Keyterms of its announcement."""
        ...

    def next(self) -> Command:
        """Return the command that appends the next entry."""
        ...

    def appended(self, at_ms: int) -> None:
        """Record the time at which Redis executed the command: Unix milliseconds."""
        ...


S = TypeVar("S", bound=_Session)


class SlotProducer(Generic[S]):
    """Appends the audio of all sessions, with one pipeline per slot of `SLOT_MS`."""

    def __init__(self, port: int, keys: Keys, audio: AudioFormat, chunk_ms: int) -> None:
        self._port = port
        self._keys = keys
        self._audio = audio
        self._phases: list[list[S]] = [[] for _ in range(chunk_ms // SLOT_MS)]
        self.slots_late_ms: Final = array("d")
        """Delay of each slot's appends, in milliseconds."""

    async def run(self, began: float | None = None) -> None:
        """Produce from `began`, on the event loop's clock, until no session appends more.

        Raises TurnbusError if a session ends prematurely, BusUnavailable if Redis fails.
        """
        try:
            async with RawConnection.connect("127.0.0.1", self._port) as connection:
                await self._produce(connection, anyio.current_time() if began is None else began)
        except (RedisError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise BusUnavailableError(f"the embedded Redis: {describe(error)}") from error

    async def _produce(self, connection: RawConnection, began: float) -> None:
        slot = 0
        while not self._is_over():
            due = began + slot * SLOT_MS / 1_000
            await anyio.sleep_until(due)
            self.slots_late_ms.append((anyio.current_time() - due) * 1_000)
            new, sessions = self._begin_slot(slot, self._phases[slot % len(self._phases)])
            commands = [self._announcement(session) for session in new]
            commands += [session.next() for session in sessions]
            replies = await connection.execute(commands) if commands else []
            for number, (session, reply) in enumerate(zip((*new, *sessions), replies, strict=True)):
                if not isinstance(reply, bytes):
                    raise TurnbusError(f"session {session.name} rejects audio: {reply}")
                if number >= len(new):
                    session.appended(int(reply.partition(b"-")[0]))
            slot += 1

    def _begin_slot(self, slot: int, phase: list[S]) -> tuple[Sequence[S], Sequence[S]]:
        """Return the sessions to announce, and the sessions that append an entry."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Return whether no session appends more."""
        return False

    def _announcement(self, session: S) -> Command:
        entry = SessionEntry(
            session=session.name,
            encoding=Encoding(self._audio.encoding),
            sample_rate=self._audio.sample_rate,
            keyterms=session.keyterms,
        )
        return (b"XADD", self._keys.sessions.encode(), b"*", *_flat(encode_session(entry)))

    def _append(self, session: str) -> Command:
        """Return the start of a command that appends an entry to a session's audio."""
        return (b"XADD", self._keys.audio("0", session).encode(), b"*")


def _flat(fields: Mapping[str, str | bytes]) -> Command:
    """Return names and values as a flat tuple."""
    parts = (part for field in fields.items() for part in field)
    return tuple(part.encode() if isinstance(part, str) else part for part in parts)


class LoadSession:
    """One session of a load benchmark at its producer."""

    def __init__(
        self, name: str, append: Command, start: Start, chunks: Sequence[Command], cycle: int
    ) -> None:
        self.name: Final = name
        self.keyterms: Final = ()
        self.start: Final = start
        self.ended = False
        self.appended_ms: Final = array("q")
        """Time each chunk was appended, by the Redis clock: Unix milliseconds."""
        self._append = append
        self._chunks = chunks
        self._cycle = cycle

    def next(self) -> Command:
        """Return the command that appends the next chunk, or the end."""
        return self._append + (_END if self.ended else self._chunks[len(self.appended_ms)])

    def appended(self, at_ms: int) -> None:
        """Record the time at which Redis executed the command."""
        if not self.ended:
            self.appended_ms.append(at_ms)

    @property
    def speech_chunks(self) -> int:
        """Number of speech chunks appended so far."""
        return max(0, len(self.appended_ms) - self.start.silent_chunks)

    @property
    def finished(self) -> bool:
        """Whether the session has reached the end of its life."""
        return len(self.appended_ms) >= self.start.life

    @property
    def at_pause(self) -> bool:
        """Whether the last utterance and the pause after it are complete."""
        chunks = self.speech_chunks
        return not self.ended and chunks > 0 and chunks % self._cycle == 0

    def late_chunks(self, interval_ms: int) -> list[int]:
        """Return the speech chunks appended more than `interval_ms` after the previous chunk."""
        times = enumerate(pairwise(self.appended_ms), 1 - self.start.silent_chunks)
        return [chunk for chunk, (last, at) in times if chunk >= 0 and at - last > interval_ms]

    def spoken_ms(self, chunk: int) -> int:
        """Return the time a speech chunk was appended."""
        return self.appended_ms[self.start.silent_chunks + chunk]


class LoadProducer(SlotProducer[LoadSession]):
    """Producer of a load benchmark: all sessions send the same words."""

    def __init__(self, port: int, keys: Keys, plan: LoadPlan, speech: Speech) -> None:
        super().__init__(port, keys, AudioFormat(plan.encoding, plan.sample_rate), plan.chunk_ms)
        self._plan = plan
        self.sessions: Final[list[LoadSession]] = []
        """All sessions so far, oldest first."""
        first_starts = starts(plan)
        # The fields of every chunk are encoded once. A session with less initial silence begins
        # at a later `seq`.
        silence = max(start.silent_chunks for start in first_starts)
        src = uuid4().hex
        chunks = [
            _flat(encode_audio(AudioEntry(audio=chunk, seq=seq, src=src)))
            for seq, chunk in enumerate([speech.silence] * silence + speech.chunks)
        ]
        self._chunks = {count: chunks[silence - count :] for count in range(silence + 1)}
        """Encoded chunks by the number of silent chunks."""
        for start in first_starts:
            self._phases[start.slot % len(self._phases)].append(self._open(start))

    @property
    def live(self) -> int:
        """Number of sessions that have started and not ended."""
        return sum(
            bool(each.appended_ms) and not each.ended for phase in self._phases for each in phase
        )

    @property
    def chunks(self) -> int:
        """Number of chunks appended so far."""
        return sum(len(each.appended_ms) for each in self.sessions)

    def _is_over(self) -> bool:
        return all(session.ended for phase in self._phases for session in phase)

    def _begin_slot(
        self, slot: int, phase: list[LoadSession]
    ) -> tuple[list[LoadSession], list[LoadSession]]:
        last = self._plan.last_slot
        appending = []
        for place, session in enumerate(phase):
            if session.at_pause and (slot >= last or session.finished):
                session.ended = True
                appending.append(session)
                if slot < last:
                    phase[place] = self._open(Start(slot, 0, self._plan.life_chunks))
        appending += [each for each in phase if each.start.slot <= slot and not each.ended]
        return [each for each in appending if not each.appended_ms], appending

    def _open(self, start: Start) -> LoadSession:
        name = f"bench-{len(self.sessions)}"
        chunks = self._chunks[start.silent_chunks]
        session = LoadSession(name, self._append(name), start, chunks, self._plan.cycle)
        self.sessions.append(session)
        return session


@cache
def _spoken(word: int) -> bytes:
    return synthesize_words([word], AUDIO)


class _Sound(NamedTuple):
    audio: bytes
    word: int | None


class RecoverySession:
    """Audio of one session of a recovery benchmark: queued words, else silence.

    Words are numbered from 0. The session's name is its one keyterm, which identifies its socket
    at the STT server.
    """

    def __init__(self, name: str, append: Command, chunk_ms: int) -> None:
        self.name: Final = name
        self.keyterms: Final = (name,)
        self.words = 0
        """Number of words queued so far, without removed ones."""
        self.appended_ms = 0
        """Milliseconds of audio appended so far."""
        self.said_ms: Final[dict[int, int]] = {}
        """Time the chunk with the end of a word was appended, by the Redis clock: Unix ms."""
        self.torn: Final[set[int]] = set()
        """Words with a long pause of the producer, which a worker fills with silence: they are
        damaged, but not by a worker."""
        self.ended = False
        self._append = append
        self._size = chunk_ms * _BYTES_PER_MS
        self._chunk_ms = chunk_ms
        self._sounds: deque[_Sound] = deque()
        self._at = 0  # offset in the first sound, in bytes
        self._closing = False
        # For the last chunk: the word it began inside of, the words that end in it, and its time.
        self._inside: int | None = None
        self._ending: list[int] = []
        self._last_ms = 0

    def say(self, count: int) -> range:
        """Queue `count` words without a pause between them; return their numbers."""
        queued = range(self.words, self.words + count)
        self._sounds += [_Sound(_spoken(word), word) for word in queued]
        self.words = queued.stop
        return queued

    def pause(self, ms: int) -> None:
        """Queue silence."""
        self._sounds.append(_Sound(synthesize_silence(ms, AUDIO), None))

    def stop_audio(self) -> None:
        """Remove the queued audio, except for a word already begun."""
        while len(self._sounds) > (1 if self._at else 0):
            self.words -= self._sounds.pop().word is not None

    def end(self) -> None:
        """End the session after the queued audio."""
        self._closing = True

    @property
    def queued_ms(self) -> int:
        """Milliseconds of audio appended or queued."""
        waiting = sum(len(sound.audio) for sound in self._sounds) - self._at
        return self.appended_ms + waiting // _BYTES_PER_MS

    def next(self) -> tuple[bytes, ...]:
        """Return the command that appends the next chunk."""
        self._inside = self._sounds[0].word if self._at else None
        self._ending = []
        chunk = bytearray()
        while self._sounds and len(chunk) < self._size:
            audio, word = self._sounds[0]
            part = audio[self._at : self._at + self._size - len(chunk)]
            chunk += part
            self._at += len(part)
            if self._at == len(audio):
                self._sounds.popleft()
                self._at = 0
                if word is not None:
                    self._ending.append(word)
        chunk += bytes(self._size - len(chunk))
        self.appended_ms += self._chunk_ms
        self.ended = self._closing and not self._sounds
        command = (*self._append, b"audio", bytes(chunk))
        return command + _END if self.ended else command

    def appended(self, at_ms: int) -> None:
        """Record the time at which Redis executed the command."""
        self.said_ms.update(dict.fromkeys(self._ending, at_ms))
        if self._inside is not None and at_ms - self._last_ms > self._chunk_ms + MAX_DELAY_MS:
            self.torn.add(self._inside)
        self._last_ms = at_ms


class RecoveryProducer(SlotProducer[RecoverySession]):
    """Producer of a recovery benchmark: each session sends the words queued for it."""

    def __init__(self, port: int, keys: Keys, chunk_ms: int) -> None:
        super().__init__(port, keys, AUDIO, chunk_ms)
        self._chunk_ms = chunk_ms
        self._new: list[RecoverySession] = []
        self._opened = 0

    def open(self, name: str) -> RecoverySession:
        """Announce a session and begin its audio, which is silent until words are queued."""
        session = RecoverySession(name, self._append(name), self._chunk_ms)
        phase = int(self._opened * GOLDEN % 1 * len(self._phases))
        self._phases[phase].append(session)
        self._new.append(session)
        self._opened += 1
        return session

    def _begin_slot(
        self, slot: int, phase: list[RecoverySession]
    ) -> tuple[list[RecoverySession], list[RecoverySession]]:
        del slot
        new, self._new = self._new, []
        phase[:] = [session for session in phase if not session.ended]
        return new, phase.copy()  # more may be opened meanwhile
