"""Pure calls: one session, whose sockets are lost at any moment, over links that stall.

All parts that decide what is published, committed and replayed are real, and so are the provider's
protocol and its script engine. Time, sockets and Redis are simulated: a minute takes some
milliseconds.
"""

import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from schemas.audio import AudioEntry, Encoding, SessionEntry
from tests.simulation.call_plan import CallPlan, Stall
from tests.simulation.lines import LATER, FluxLine, Line, boundary_of, line_to
from tests.simulation.provider_model import (
    Habits,
    Link,
    Message,
    ProviderSide,
    Recognizer,
    Standstills,
    stream_settings,
)
from tests.simulation.speech import AUDIO, BYTES_PER_MS, Word, draw_speech
from worker.core import stream_ids
from worker.core.ledger import Ledger
from worker.core.records import EventDraft
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.engines.script_words import words_of
from worker.session.checkpoint import Checkpoint
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.events import AudioTranscribed, TurnEvent
from worker.stt.provider import Provider
from worker.stt.routes import PROVIDERS
from worker.telemetry.counters import Counters

TICK_S: Final = 0.1
"""Interval between the worker's ticks."""

RETRY_S: Final = 0.02
"""Time after which audio that pacing held back is sent."""

TOGETHER_S: Final = 0.003
"""Messages that arrive within this time are read together."""

QUIET_S: Final = 5.0
"""Time without activity after which a call is over."""

RECONNECT_S: Final = (0.02, 0.3, 1.0, 3.0)
"""Times until a lost socket is replaced."""

CUT_TOLERANCE_MS: Final = 10
"""Maximum distance of a cut from the silence in which it belongs: a frame."""


class Cut(NamedTuple):
    """Where a turn ended that did not end between its last word and the next turn's first."""

    at_ms: float
    last_word_ends_ms: int
    next_word_begins_ms: float

    @property
    def early(self) -> bool:
        """Whether a replay would repeat the turn's last words.

        Otherwise it would lose the next turn's.
        """
        return self.at_ms < self.last_word_ends_ms


class CallResult(NamedTuple):
    """Result of a call."""

    seconds: float
    """Duration of its audio."""
    words: int
    turns: int
    wrong_cuts: tuple[Cut, ...]
    wrong_words: str
    """What is wrong with them; empty if each was transcribed once, and in order."""


class _Entry(NamedTuple):
    at: float
    id: str
    audio: bytes


class _Turns:
    """The turns of a call, in place of the publisher: their words, and where they were cut."""

    name = "call"

    def __init__(self, ledger: Ledger, words: Sequence[Word]) -> None:
        self._ledger = ledger
        self.spoken = words
        self.ended = 0
        self.words: list[int | str] = []
        self.wrong_cuts: list[Cut] = []

    def publish(self, drafts: Sequence[EventDraft], *_: object) -> None:
        for draft in drafts:
            if draft.kind == "turn.end":
                self._end(draft.transcript or "")

    def request_commit(self) -> None: ...

    def _end(self, transcript: str) -> None:
        words, spoken = words_of(transcript), self.spoken
        self.words += words
        self.ended += 1
        last = words[-1] if words else None
        if not isinstance(last, int):  # a turn without words, or with a damaged one
            return
        least, most = spoken[last].ends, float("inf")
        if last + 1 < len(spoken):
            most = spoken[last + 1].begins
        at_ms = self._ledger.committed_bytes / BYTES_PER_MS
        if not least - CUT_TOLERANCE_MS <= at_ms <= most + CUT_TOLERANCE_MS:
            self.wrong_cuts.append(Cut(at_ms, least, most))


class _Socket(NamedTuple):
    line: Line | FluxLine
    side: ProviderSide


class Call:
    """One call, from its first chunk until all messages are received."""

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self._rng = rng = random.Random(f"{plan.seed} {plan.words_at_most} speech")
        rewording = plan.seed if plan.rewording else None
        speech = draw_speech(rng, plan.words_at_most)
        self._seconds = speech.ms / 1_000
        self._provider: Provider = PROVIDERS[plan.provider]
        self._habits = Habits(ScriptEngine(ScriptOptions(rewording=rewording)))
        standstills = _draw_standstills(rng, self._seconds) if plan.stall != Stall.NONE else []
        self._up = standstills if plan.stall in (Stall.UP, Stall.BOTH) else []
        self._down = standstills if plan.stall in (Stall.DOWN, Stall.BOTH) else []
        self._asleep = standstills if plan.stall is Stall.WORKER else []
        losses = (rng.uniform(0.3, self._seconds + 0.5) for _ in range(plan.losses))
        self._losses = deque(sorted(losses))
        self._entries = _draw_entries(rng, speech.sound)
        self._unread = deque(self._entries)
        entry = SessionEntry(
            session="s", encoding=Encoding(AUDIO.encoding), sample_rate=AUDIO.sample_rate
        )
        state = SessionState(entry, Checkpoint(), max_lag_s=0.0, provider=plan.provider)
        self._ledger = state.ledger
        self._turns = _Turns(self._ledger, speech.words)
        self._sender = AudioSender(
            entry.encoding, AUDIO.sample_rate, self._ledger, Pacer(1.5), Counters()
        )
        self._stall_detector = StallDetector(LATER)
        delays = plan.delays
        usual_lag_s = delays.lag_s + delays.jitter_s / 2 + 0.06
        self._receiver = MessageReceiver(
            state,
            boundary_of(self._sender, self._stall_detector, usual_lag_s),
            self._sender,
            cast("EventPublisher", self._turns),
            UpdateThrottle(plan.update_interval_ms),
        )
        self._socket: _Socket | None = None
        self._connects_at = 0.0
        self._retries_at: float | None = None
        self._tick_at = TICK_S
        self._busy_at = 0.0

    def run(self) -> CallResult:
        """Run the call."""
        now = 0.0
        while now < self._busy_at + QUIET_S:
            now = self._next_at(now)
            self._step(now)
        self._receiver.commit_all_sent("close")
        turns, spoken = self._turns, self._turns.spoken
        wrong_words = _wrong_words(turns.words, len(spoken))
        return CallResult(
            self._seconds, len(spoken), turns.ended, tuple(turns.wrong_cuts), wrong_words
        )

    @property
    def _is_busy(self) -> bool:
        if self._losses or self._socket is None or self._unread:
            return True
        return bool(self._socket.side.messages) or not self._sender.is_drained

    def _next_at(self, now: float) -> float:
        """Return when the worker has something to do next."""
        at, socket = self._tick_at, self._socket
        if socket is None:
            at = min(at, self._connects_at)
        else:
            if self._retries_at is not None:
                at = min(at, self._retries_at)
            elif self._unread:
                at = min(at, self._unread[0].at)
            if socket.side.messages:
                at = min(at, socket.side.messages[0].at)
            if self._losses:
                at = min(at, self._losses[0])
        at = max(at, now)
        for begin, end in self._asleep:
            if begin <= at < end:
                at = end
        return at

    def _step(self, now: float) -> None:
        ticks = now >= self._tick_at
        if ticks:
            self._tick_at = now + TICK_S
            self._stall_detector.tick(LATER + now)
            self._receiver.release_update(LATER + now)
            if self._is_busy:
                self._busy_at = now
        if self._losses and now >= self._losses[0] and self._socket is not None:
            self._losses.popleft()
            self._lose(now)
        if self._socket is None and now >= self._connects_at:
            self._connect(now)
        socket = self._socket
        if socket is not None:
            self._send(socket, now, fills=ticks)
            messages = socket.side.messages
            while messages and messages[0].at <= now:
                self._receive(socket.line, messages, now)

    def _lose(self, now: float) -> None:
        self._socket = None
        self._receiver.publish_text()
        self._ledger.rewind()
        self._sender.detach()
        self._receiver.forget()
        after, entries = stream_ids.order(self._ledger.read_after), self._entries
        first = bisect_right(entries, after, key=lambda entry: stream_ids.order(entry.id))
        self._unread = deque(entries[first:])
        self._connects_at = now + self._rng.choice(RECONNECT_S)

    def _connect(self, now: float) -> None:
        provider, rng = self._provider, self._rng
        up, down = Link(rng, standstills=self._up), Link(rng, self._plan.delays, self._down)
        recognizer = Recognizer(provider, stream_settings(provider), self._habits)
        self._socket = _Socket(line_to(provider), ProviderSide(recognizer, up, down))
        self._receiver.socket_opened(LATER + now, provider, progressed=True)
        self._sender.attach(self._socket.line, LATER + now)

    def _send(self, socket: _Socket, now: float, *, fills: bool) -> None:
        unread, sender = self._unread, self._sender
        while unread and unread[0].at <= now and sender.has_room:
            self._take(unread.popleft(), LATER + now)
        held = not sender.is_drained and sender.drain(LATER + now)
        self._retries_at = now + RETRY_S if held else None
        if fills and self._receiver.inside_turn:
            sender.send_filler(LATER + now, LATER, LATER + now)
        sent = socket.line.sent
        while sent:
            socket.side.send(sent.popleft(), now)

    def _take(self, entry: _Entry, now: float) -> None:
        """Admit an entry and send its audio, as a session does."""
        ledger, sender, audio = self._ledger, self._sender, entry.audio
        if ledger.covers(ledger.read_bytes) or not ledger.admit_next(entry.id, audio, "", None):
            audio = ledger.admit(entry.id, AudioEntry(audio=audio)).audio
        if audio and not sender.send_at_once(audio, now):
            sender.enqueue(audio)

    def _receive(self, line: Line | FluxLine, messages: deque[Message], now: float) -> None:
        """Receive the first message."""
        at, data = messages.popleft()
        slept = any(begin <= at < end for begin, end in self._asleep)
        read_until = now if slept else at + TOGETHER_S
        waiting = 0
        while waiting < len(messages) and messages[waiting].at < read_until:
            waiting += 1
        arrival = self._sender.send_log.moment(LATER + (now if slept else at))
        for event in line.decode(data, ""):
            begins = isinstance(event, TurnEvent) and event.kind is ProviderInput.START
            self._receiver.on_message(arrival, waiting, begins=begins)
            if isinstance(event, TurnEvent):
                self._receiver.on_turn_event(event, arrival)
            elif isinstance(event, AudioTranscribed):
                self._receiver.on_transcribed(event.transcribed_ms)


def _wrong_words(words: Sequence[int | str], spoken: int) -> str:
    """Compare what was transcribed with the numbers of the words that were spoken."""
    if words == [*range(spoken)]:
        return ""
    counts = Counter(words)
    found = {
        "lost": [number for number in range(spoken) if number not in counts],
        "repeated": [word for word, count in counts.items() if count > 1],
        "damaged": [word for word in words if isinstance(word, str)],
    }
    return ", ".join(f"{what} {which}" for what, which in found.items() if which) or "out of order"


def _draw_standstills(rng: random.Random, seconds: float) -> Standstills:
    begins = [rng.uniform(0.3, seconds) for _ in range(rng.randint(1, 2))]
    return [(begin, begin + rng.uniform(0.4, 2.0)) for begin in begins]


def _draw_entries(rng: random.Random, sound: bytes) -> list[_Entry]:
    ms, chunk_ms = len(sound) // BYTES_PER_MS, rng.choice((20, 40, 100, 200, 0))
    entries: list[_Entry] = []
    begin, at = 0, 0.0
    while begin < ms:
        end = min(ms, begin + (chunk_ms or rng.randint(20, 200)))
        audio = sound[begin * BYTES_PER_MS : end * BYTES_PER_MS]
        at = max(at, end / 1_000 + rng.uniform(0.002, 0.03))
        entries.append(_Entry(at, f"{len(entries) + 1}-0", audio))
        begin = end
    return entries
