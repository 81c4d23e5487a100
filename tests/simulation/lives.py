"""Simulated sessions: sockets are lost at any moment, over links that stall.

All parts that decide what is published, committed and replayed are real, and so is the script
engine. Time, sockets and Redis are simulated. A session of a minute takes a twentieth of a second.
"""

import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar, cast

from schemas.audio import AudioEntry, Encoding, SessionEntry
from tests.simulation.calls import (
    AUDIO,
    BYTES_PER_MS,
    LATER,
    LOOK_S,
    TOGETHER_S,
    Line,
    Stall,
    boundary_of,
    delayed,
    speech,
    stalled,
    stalls,
)
from tests.support.commits import TestPublisher
from worker.core import stream_ids
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.local.emulator.engines.base import EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptStream
from worker.local.emulator.engines.script_words import WORD_MS
from worker.session.checkpoint import Checkpoint
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.cartesia import CARTESIA
from worker.stt.events import TurnEvent
from worker.telemetry.counters import Counters

T = TypeVar("T")
STEP_S = 0.01
QUIET_S = 5.0
"""Time without activity after which a session is over."""


class Habits(NamedTuple):
    """Habits from which a session is generated."""

    seed: int
    lag_s: tuple[float, float]
    """Minimum and maximum lag of the provider. Single messages arrive later."""
    losses: int
    """Number of sockets lost."""
    stall: Stall = Stall.NONE
    words_at_most: int = 6
    """Maximum number of words in a turn."""


class _Entry(NamedTuple):
    at: float
    id: str
    audio: bytes


class _Provider:
    """The provider's side of one socket."""

    def __init__(self, rng: random.Random, habits: Habits, lag_s: float, jitter_s: float) -> None:
        self._rng, self._habits = rng, habits
        self._lag_s, self._jitter_s = lag_s, jitter_s
        self._coming: deque[tuple[float, bytes]] = deque()
        self._events: list[EngineEvent] = []
        self._engine = ScriptStream(
            AUDIO, TurnSettings(), WORD_MS, self._events.append, lambda word: word, None
        )
        self._sent_at = 0.0
        self.messages: deque[tuple[float, EngineEvent]] = deque()
        """Messages with their arrival times."""

    @property
    def busy(self) -> bool:
        """Whether any data is in flight."""
        return bool(self._coming or self.messages)

    def send(self, audio: bytes, at: float, standstills: list[tuple[float, float]]) -> None:
        """Send audio to the provider."""
        if self._habits.stall in (Stall.UP, Stall.BOTH):
            at = delayed(self._rng, at, standstills)
        self._coming.append((max(at, self._coming[-1][0] if self._coming else at), audio))

    def process(self, now: float, standstills: list[tuple[float, float]]) -> None:
        """Process the audio that has arrived by now."""
        while self._coming and self._coming[0][0] <= now:
            came_at, audio = self._coming.popleft()
            at_once(self._engine.feed(audio))
            for event in self._events:
                late_s = self._rng.expovariate(1 / 0.3) if self._rng.random() < 0.03 else 0.0
                at = came_at + self._lag_s + self._rng.uniform(0, self._jitter_s) + late_s
                if self._habits.stall in (Stall.DOWN, Stall.BOTH):
                    at = delayed(self._rng, at, standstills)
                self._sent_at = max(at, self._sent_at + 0.00005)
                self.messages.append((self._sent_at, event))
            self._events.clear()


class Life:
    """One session, from its first chunk until all messages are received."""

    def __init__(self, habits: Habits, update_interval_ms: int = 500) -> None:
        self._habits = habits
        self._rng = rng = random.Random(repr(habits))
        sound, self.words = speech(rng, habits.words_at_most)
        seconds = len(sound) / BYTES_PER_MS / 1_000
        self._lag_s, self._jitter_s = rng.uniform(*habits.lag_s), rng.uniform(0, 0.15)
        self._stalls = stalls(rng, seconds) if habits.stall is not Stall.NONE else []
        self._losses = deque(sorted(rng.uniform(0.3, seconds + 0.5) for _ in range(habits.losses)))
        self._entries = _entries(rng, sound)
        self._read = 0  # number of entries
        entry = SessionEntry(
            session="s", encoding=Encoding.PCM_S16LE, sample_rate=AUDIO.sample_rate
        )
        state = SessionState(entry, Checkpoint(), max_lag_s=0.0, provider="p")
        self._ledger = state.ledger
        self._sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, self._ledger, Pacer(1.5), Counters()
        )
        self._stall_detector = StallDetector(LATER)
        usual_lag_s = self._lag_s + self._jitter_s / 2 + 0.06
        boundary = boundary_of(self._sender, self._stall_detector, usual_lag_s)
        self._published = TestPublisher(entry, state, self._sender)
        self._receiver = MessageReceiver(
            state,
            boundary,
            self._sender,
            self._published.publisher,
            UpdateThrottle(update_interval_ms),
        )
        self._line: Line | None = None
        self._provider: _Provider | None = None
        self._connects_at = 0.0

    def live(self) -> list[str]:
        """Run the session; return every word of its `turn.end` events."""
        busy_at, count = 0.0, 0
        while count * STEP_S < busy_at + QUIET_S:
            count += 1
            now = count * STEP_S
            self._step(now, ticks=count % round(LOOK_S / STEP_S) == 0)
            if self._busy:
                busy_at = now
        self._receiver.commit_all_sent("close")
        ends = [event for event in self._published.events() if event["type"] == "turn.end"]
        return [word for end in ends for word in end["transcript"].split()]

    @property
    def _busy(self) -> bool:
        if self._losses or self._provider is None or self._read < len(self._entries):
            return True
        return self._provider.busy or not self._sender.is_drained

    def _step(self, now: float, *, ticks: bool) -> None:
        if self._provider is not None:
            self._provider.process(now, self._stalls)
        if self._habits.stall is Stall.WORKER and stalled(self._stalls, now):
            return
        if ticks:
            self._stall_detector.tick(LATER + now)
            self._receiver.release_update(LATER + now)
        if self._losses and now >= self._losses[0] and self._line is not None:
            self._losses.popleft()
            self._lose(now)
        if self._line is None and now >= self._connects_at:
            self._connect(now)
        if self._line is not None and self._provider is not None:
            self._send(self._line, self._provider, now, fills=ticks)
            self._receive(self._provider, now)

    def _lose(self, now: float) -> None:
        self._line = self._provider = None
        self._receiver.publish_text()
        self._ledger.rewind()
        self._sender.detach()
        self._receiver.forget()
        after = stream_ids.order(self._ledger.read_after)
        unread = (
            at for at, entry in enumerate(self._entries) if stream_ids.order(entry.id) > after
        )
        self._read = next(unread, len(self._entries))
        self._connects_at = now + self._rng.choice((0.02, 0.3, 1.0, 3.0))

    def _connect(self, now: float) -> None:
        self._line = Line()
        self._provider = _Provider(self._rng, self._habits, self._lag_s, self._jitter_s)
        self._receiver.socket_opened(LATER + now, CARTESIA, progressed=True)
        self._sender.attach(self._line, LATER + now)

    def _send(self, line: Line, provider: _Provider, now: float, *, fills: bool) -> None:
        unread = self._entries[self._read :]
        for entry in unread:
            if entry.at > now or not self._sender.has_room:
                break
            self._read += 1
            admitted = self._ledger.admit(entry.id, AudioEntry(audio=entry.audio))
            if admitted.audio:
                self._sender.enqueue(admitted.audio)
        self._sender.drain(LATER + now)
        if fills and self._receiver.inside_turn:
            self._sender.send_filler(LATER + now, LATER, LATER + now)
        while line.sent:
            provider.send(line.sent.popleft(), now, self._stalls)

    def _receive(self, provider: _Provider, now: float) -> None:
        due = []
        while provider.messages and provider.messages[0][0] <= now:
            due.append(provider.messages.popleft())
        for count, (at, event) in enumerate(due, 1):
            slept = self._habits.stall is Stall.WORKER and stalled(self._stalls, at)
            arrival = self._sender.send_log.moment(LATER + (now if slept else at))
            waiting = sum(slept or later - at < TOGETHER_S for later, _ in due[count:])
            begins = event.kind == "turn.start"
            self._receiver.on_message(arrival, waiting, begins=begins)
            self._receiver.on_turn_event(turn_event(event), arrival)


def _entries(rng: random.Random, sound: bytes) -> list[_Entry]:
    ms, chunk_ms = len(sound) // BYTES_PER_MS, rng.choice((20, 40, 100, 200, 0))
    entries: list[_Entry] = []
    begin = 0
    while begin < ms:
        end = min(ms, begin + (chunk_ms or rng.randint(20, 200)))
        audio = sound[begin * BYTES_PER_MS : end * BYTES_PER_MS]
        at = end / 1_000 + rng.uniform(0.002, 0.03)
        entries.append(_Entry(at, f"{len(entries) + 1}-0", audio))
        begin = end
    return entries


def turn_event(event: EngineEvent) -> TurnEvent:
    return TurnEvent(ProviderInput(event.kind), event.transcript)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends; return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("the engine waited")
