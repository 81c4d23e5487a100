"""Producers of a simulated fleet: each sends the audio of one session in real time.

A producer appends to Redis by a plain call: the fleet's subject is the workers. It retries while
Redis is away or full, and appends every chunk once; only `resending` repeats some on purpose. It
stops when Redis answers that the session is over, as producers should.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import anyio
import msgspec

from schemas import AudioEntry, Keys, SessionEntry, encode_audio, encode_session
from schemas.audio import ProviderName
from tests.chaos.script import Chunk, ScriptedSession, Turn, chunks
from tests.chaos.signals import Signals
from tests.simulation.fleet.bad_entries import BAD_AUDIO, BAD_SESSIONS, OF_A_SESSION
from tests.simulation.fleet.checkers import Sent
from tests.simulation.fleet.plan import BadEntry, FleetPlan, FleetSession
from tests.simulation.fleet.rejections import Rejected
from worker.bench.checker import Appended
from worker.core import stream_ids
from worker.local.emulator.engines.base import AudioFormat


class Refusal(Enum):
    """Why Redis does not accept an append now."""

    AWAY = "it is not reachable, or loads its data"
    FULL = "it answers reads, and rejects appends"
    OVER = "the stream's session is over: its key has another type"


Append = Callable[[str, Mapping[str, bytes | str]], bytes | Refusal]
"""Appends the fields to the stream, and returns the entry's id, or why it was not appended."""

RETRY_S: Final = 0.03
RESENT_SHARE: Final = 0.1
MAX_RESENT: Final = 4
"""Maximum number of entries that are appended again at a time."""

TORN_DELAY_S: Final = 0.25
"""Time for which a full Redis rejects a chunk, from which a worker may send silence in its place.

A worker sends silence 0.5 s after the chunk before, only while Redis answers its reads.
"""


class _SessionOverError(Exception):
    """The session ended before its producer had appended everything."""


class FleetProducer:
    """Sends the audio of one session."""

    def __init__(self, session: FleetSession, keys: Keys, append: Append) -> None:
        script = session.script
        self.session: Final = session
        self._announcements = keys.sessions
        self._stream = keys.audio(script.lane, script.name)
        self._append = append
        self._rng = random.Random(f"{script.seed} producer")
        self._resendable: deque[dict[str, bytes | str]] = deque(maxlen=MAX_RESENT)
        self._appended: list[Appended] = []
        self._torn: set[int] = set()
        self._signals = Signals()
        self._rejected_s = 0.0  # time for which a full Redis rejected the current chunk
        self._last_ids: dict[str, bytes] = {}
        self._forgotten = False
        self._over = False
        self._bad_ids: list[str] = []
        self.done = False
        """Whether everything was appended."""

    @property
    def sent(self) -> Sent:
        """What was appended so far."""
        torn = frozenset(self._torn)
        return Sent(
            self._appended,
            torn,
            self._signals,
            complete=self.done,
            over=self._over,
            forgotten=self._forgotten,
            bad_ids=self._bad_ids,
        )

    def check_memory(self, last_id_of: Callable[[str], bytes | None]) -> None:
        """Note whether Redis lost any append in a failover.

        `last_id_of` returns the last id of a stream that Redis remembers; None for another key.
        """
        for key, last_id in self._last_ids.items():
            known = last_id_of(key)
            if known is not None and stream_ids.order(known.decode()) < stream_ids.order(
                last_id.decode()
            ):
                self._forgotten = True

    async def run(self) -> None:
        """Announce the session, send its audio, end it; stop if it is over before."""
        try:
            await self._run()
            self.done = True
        except _SessionOverError:
            self._over = True

    async def _run(self) -> None:
        script = self.session.script
        if not script.announced_late:
            await self._announce()
        began = anyio.current_time()
        size, samples_ms = 0, 1_000 / (script.audio.sample_rate * self.session.encoding.width)
        every = list(chunks(script))
        for nth, chunk in enumerate(every):
            await anyio.sleep_until(began + chunk.due_s)
            size += len(chunk.audio)
            inside_word = nth + 1 < len(every) and every[nth + 1].torn is not None
            end_ms = size * samples_ms
            entry = self._entry(nth, chunk, restarted=nth >= len(every) // 2)
            entry = self._with_signals(entry, end_ms, inside_word=inside_word)
            fields = encode_audio(entry)
            self._rejected_s = 0.0
            at_ms = await self._add(fields, await self._bad_fields(fields))
            if chunk.torn is not None and self._rejected_s > TORN_DELAY_S:
                self._torn.add(chunk.torn)
            self._appended.append(Appended(end_ms, at_ms))
            if nth == 0 and script.announced_late:
                await self._announce()
        await anyio.sleep(script.linger_s)
        await self._retry(self._stream, encode_audio(AudioEntry(end=True)))

    async def _announce(self) -> None:
        script = self.session.script
        entry = SessionEntry(
            session=script.name,
            encoding=self.session.encoding,
            sample_rate=script.audio.sample_rate,
            lane=script.lane,
            out=script.out,
            providers=self.session.providers,
            config=self.session.config,
        )
        await self._retry(self._announcements, encode_session(entry))

    def _entry(self, nth: int, chunk: Chunk, *, restarted: bool) -> AudioEntry:
        mode = self.session.script.mode
        if mode == "plain":
            return AudioEntry(audio=chunk.audio)
        src = "b" if mode == "restarting" and restarted else "a"
        return AudioEntry(audio=chunk.audio, seq=nth, src=src)

    def _with_signals(self, entry: AudioEntry, end_ms: float, *, inside_word: bool) -> AudioEntry:
        """Draw the signals of the chunk that ends there."""
        session, rng = self.session, self._rng
        if rng.random() < session.mark_share:
            mark = {"nth": len(self._signals.marks)}
            self._signals.marks.append(mark)
            entry = msgspec.structs.replace(entry, mark=mark)
        if not inside_word and rng.random() < session.forced_end_share:
            self._signals.forced_ends_ms.append(end_ms)
            entry = msgspec.structs.replace(entry, turn_end=True)
        return entry

    async def _bad_fields(self, good: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
        """Return what is wrong beside the next entry's good fields, or append a bad entry first."""
        kind = self.session.bad_audio
        if kind is None or self._rng.random() >= self.session.bad_audio_share:
            return {}
        bad = BAD_AUDIO[kind].fields
        if BAD_AUDIO[kind].beside_audio:
            return {} if bad.keys() & good.keys() else dict(bad)
        await self._retry(self._stream, bad)
        self._bad_ids.append(self._last_ids[self._stream].decode())
        return {}

    async def _add(self, fields: dict[str, bytes | str], bad: dict[str, bytes | str]) -> int:
        """Append an entry, and some earlier ones again; return its time in Unix milliseconds."""
        at_ms = await self._retry(self._stream, fields | bad)
        if bad:
            self._bad_ids.append(self._last_ids[self._stream].decode())
        if self.session.script.mode == "resending":
            self._resendable.append(fields)
            if self._rng.random() < RESENT_SHARE:
                for known in list(self._resendable)[-self._rng.randint(1, MAX_RESENT) :]:
                    await self._retry(self._stream, known)
        return at_ms

    async def _retry(self, key: str, fields: Mapping[str, bytes | str]) -> int:
        while isinstance(added := self._append(key, fields), Refusal):
            if added is Refusal.OVER:
                raise _SessionOverError
            if added is Refusal.FULL:
                self._rejected_s += RETRY_S
            await anyio.sleep(RETRY_S)
        self._last_ids[key] = added
        return int(added.partition(b"-")[0])


def late_session(number: int, provider: ProviderName) -> FleetSession:
    """Return a session of one word that prefers a provider, and may use the other."""
    script = ScriptedSession(
        name=f"late-{number}",
        audio=AudioFormat("pcm_s16le", 8_000),
        turns=(Turn((), 700, stalls=False),),
        seed=f"late {number}",
    )
    other: ProviderName = "flux" if provider == "cartesia" else "cartesia"
    return FleetSession(at_s=0.0, script=script, providers=(provider, other))


class BadProducer:
    """Appends one bad session entry."""

    def __init__(self, entry: BadEntry, plan: FleetPlan, keys: Keys, append: Append) -> None:
        target = plan.sessions[entry.target % len(plan.sessions)]
        script, self._kind = target.script, BAD_SESSIONS[entry.kind]
        self.entry: Final = entry
        self._name = script.name if entry.kind in OF_A_SESSION else entry.name
        good = SessionEntry(
            session=self._name,
            encoding=target.encoding,
            sample_rate=script.audio.sample_rate,
            lane=script.lane,
        )
        fields: dict[str, str | None] = {**encode_session(good), **self._kind.changes}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._keys = keys
        self._append = append
        self.audio_key: Final = keys.audio(script.lane, self._name)
        self._state_key = keys.state(script.lane, self._name)
        self._entry_id = ""

    @property
    def rejected(self) -> Rejected | None:
        """What was appended; None before that."""
        if not self._entry_id:
            return None
        name = self._fields.get("session", "")
        return Rejected(self.entry, self._entry_id, name, self._fields)

    async def run(self, exists: Callable[[str], bool]) -> None:
        """Append the entry; one with a known id when a worker has claimed that session."""
        if self.entry.kind in OF_A_SESSION:
            while not exists(self._state_key):
                await anyio.sleep(RETRY_S)
        elif self.entry.audio_first and self._kind.published:
            await self._retry(self.audio_key, encode_audio(AudioEntry(audio=bytes(320))))
        self._entry_id = (await self._retry(self._keys.sessions, self._fields)).decode()

    async def _retry(self, key: str, fields: Mapping[str, bytes | str]) -> bytes:
        while isinstance(added := self._append(key, fields), Refusal):
            await anyio.sleep(RETRY_S)
        return added
