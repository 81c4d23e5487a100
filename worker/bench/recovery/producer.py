"""Producer of a recovery benchmark: sends the audio of all sessions in real time."""

import math
from collections import deque
from functools import cache
from typing import Final, NamedTuple

import anyio
from redis.exceptions import RedisError

from schemas import Keys, SessionEntry, encode_session
from schemas.audio import Encoding
from worker.bench.plan import SLOT_MS
from worker.bench.raw_redis import RawConnection
from worker.bus.client.connection import describe
from worker.errors import BusUnavailableError, TurnbusError
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

AUDIO: Final = AudioFormat("pcm_s16le", 16_000)
_BYTES_PER_MS: Final = 32
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_END: Final = (b"end", b"1")
_LATE_MS: Final = 400
"""Maximum delay of a chunk; after a slightly longer delay a worker sends filler."""


@cache
def _spoken(word: int) -> bytes:
    return synthesize_words([word], AUDIO)


class _Sound(NamedTuple):
    audio: bytes
    word: int | None


class ProducerSession:
    """Audio of one session: queued words, and silence while nothing is queued.

    Words are numbered from 0. The session's name is its one keyterm, which identifies its socket
    at the STT server.
    """

    def __init__(self, session: str, keys: Keys, chunk_ms: int) -> None:
        self.session: Final = session
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
        self._stream = keys.audio("0", session).encode()
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
        command = (b"XADD", self._stream, b"*", b"audio", bytes(chunk))
        return command + _END if self.ended else command

    def appended(self, at_ms: int) -> None:
        """Record the time at which Redis executed the command."""
        self.said_ms.update(dict.fromkeys(self._ending, at_ms))
        if self._inside is not None and at_ms - self._last_ms > self._chunk_ms + _LATE_MS:
            self.torn.add(self._inside)
        self._last_ms = at_ms


class SessionsProducer:
    """Appends the audio of all sessions, with one pipeline per slot."""

    def __init__(self, port: int, keys: Keys, chunk_ms: int) -> None:
        self._port = port
        self._keys = keys
        self._chunk_ms = chunk_ms
        self._phases: list[list[ProducerSession]] = [[] for _ in range(chunk_ms // SLOT_MS)]
        self._new: list[ProducerSession] = []
        self._opened = 0
        self.latest_ms = 0.0
        """Maximum delay of a slot, in milliseconds."""

    def open(self, session: str) -> ProducerSession:
        """Announce a session and begin its audio, which is silent until words are queued."""
        line = ProducerSession(session, self._keys, self._chunk_ms)
        # Steps of the golden ratio spread chunks evenly for any number of sessions.
        phase = int(self._opened * _GOLDEN % 1 * len(self._phases))
        self._phases[phase].append(line)
        self._new.append(line)
        self._opened += 1
        return line

    async def run(self) -> None:
        """Produce until cancelled.

        Raises TurnbusError if a session ends prematurely, BusUnavailable if Redis fails.
        """
        try:
            async with RawConnection.connect("127.0.0.1", self._port) as wire:
                await self._produce(wire)
        except (RedisError, OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise BusUnavailableError(f"the embedded Redis: {describe(error)}") from error

    async def _produce(self, wire: RawConnection) -> None:
        began = anyio.current_time()
        slot = 0
        while True:
            due = began + slot * SLOT_MS / 1_000
            await anyio.sleep_until(due)
            self.latest_ms = max(self.latest_ms, (anyio.current_time() - due) * 1_000)
            new, self._new = self._new, []
            if new:
                _check(await wire.execute([self._announcement(line) for line in new]))
            phase = self._phases[slot % len(self._phases)]
            phase[:] = [line for line in phase if not line.ended]
            if phase:
                await self._append(wire, tuple(phase))  # more may be opened meanwhile
            slot += 1

    async def _append(self, wire: RawConnection, lines: tuple[ProducerSession, ...]) -> None:
        added = _check(await wire.execute([line.next() for line in lines]))
        for line, entry in zip(lines, added, strict=True):
            line.appended(int(entry.partition(b"-")[0]))

    def _announcement(self, line: ProducerSession) -> tuple[bytes, ...]:
        entry = SessionEntry(
            session=line.session,
            encoding=Encoding(AUDIO.encoding),
            sample_rate=AUDIO.sample_rate,
            keyterms=(line.session,),
        )
        fields = [part.encode() for field in encode_session(entry).items() for part in field]
        return (b"XADD", self._keys.sessions.encode(), b"*", *fields)


def _check(replies: list[object]) -> list[bytes]:
    """Return the ids of the appended entries; raise TurnbusError for an error reply."""
    ids = [reply for reply in replies if isinstance(reply, bytes)]
    if len(ids) != len(replies):
        refused = next(reply for reply in replies if not isinstance(reply, bytes))
        raise TurnbusError(f"Redis rejects audio: {refused}")
    return ids
