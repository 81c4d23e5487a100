"""Calls to a provider that decides by meaning where turns end, with single late messages.

In the calls of `simulate_call`, the length of a pause shows whether it ends a turn. Here it does
not: a provider that ends turns by what was said ends some at short pauses, and continues others
over long ones. So only the messages show where a turn ended, and when they arrived.

The boundary finder, the sender and the script engine are real. Time and the socket are simulated.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from websockets.uri import parse_uri

from schemas.audio import AudioEntry, Encoding
from tests.simulation.best_observer import (
    IN_ORDER_S,
    BestObserver,
    Delays,
    Manner,
    Seen,
    Sent,
    Word,
)
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.core.turn_boundary import ProviderLag
from worker.event_loop import StallDetector
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptStream, synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS
from worker.session.boundary import TurnBoundaryFinder
from worker.session.sender import AudioSender
from worker.stt.cartesia import CARTESIA, TurnsStream
from worker.stt.frames import LenientProtocol
from worker.stt.provider import Endpoint, StreamSettings
from worker.stt.websocket import WebSocketClient
from worker.telemetry.counters import Counters

AUDIO = AudioFormat("pcm_s16le", 8_000)
BYTES_PER_MS = 16

LATER = 1e9
"""Offset of call times on the clock: so far ahead that the real clock does not reach it."""

TOGETHER_S = 0.003
"""Messages that arrive within this time are read together."""

LEAD_IN_MS = 400
LAST_PAUSE_MS = 3_000
SPEAKING = 0.9
"""The engine's likelihood of a turn when speech stops."""
FADE_MS = 800
"""Silence that lowers it by 1."""

MANNER = Manner(
    proposes=0.5,
    ends=0.6,
    proposal_ms=range(160, 401, 20),
    end_ms=range(40, 401, 20),
    shown=0.5,
)


class Decision(NamedTuple):
    """What the provider does in a pause, if the pause is long enough."""

    proposes_ms: int | None
    """Silence after which it sends `turn.eager_end`; None for never."""
    ends_ms: int | None
    """Silence after which it sends `turn.end`; None for never."""

    @property
    def settings(self) -> TurnSettings:
        """The engine's settings in this pause."""
        eager_end = 0.0 if self.proposes_ms is None else SPEAKING - self.proposes_ms / FADE_MS
        end_ms = 1e9 if self.ends_ms is None else self.ends_ms
        return TurnSettings(eager_end=eager_end, end=0.0, end_timeout_ms=end_ms)


class Message(NamedTuple):
    """A message of the provider."""

    at: float
    kind: str
    text: str


class Ending(NamedTuple):
    """A `turn.end`: where the turn ended, and where two observers believe that it did."""

    ended_at: int
    """Number of the turn's last word."""
    cut_ms: int
    """Where the worker cuts."""
    earliest_ms: int
    """Where the turn's last word ends."""
    latest_ms: int
    """Where the next word begins."""
    probabilities: dict[int, float]
    """The best observer's probability of each pause; pause 0 follows word 0."""

    @property
    def worker_is_wrong(self) -> bool:
        """Whether the worker cuts outside of the pause, by more than a frame."""
        return not self.earliest_ms - 10 <= self.cut_ms <= self.latest_ms + 10

    @property
    def observer_is_wrong(self) -> bool:
        """Whether another pause is the most probable one."""
        return max(self.probabilities, key=self.probabilities.__getitem__) != self.ended_at

    @property
    def doubt(self) -> float:
        """The probability that the best observer is wrong."""
        best = max(self.probabilities, key=self.probabilities.__getitem__)
        return sum(each for pause, each in self.probabilities.items() if pause != best)


class Call:
    """The call that a seed generates."""

    def __init__(self, seed: int, late_share: float, late_s: float) -> None:
        self._rng = rng = random.Random(f"{seed} undecided")
        self.delays = Delays(rng.uniform(0, 0.3), rng.uniform(0.005, 0.15), late_share, late_s)
        self._decisions = dict[int, Decision]()
        self.words = list[Word]()
        self.sound = b"".join(self._speak())
        self.ms = len(self.sound) // BYTES_PER_MS
        self.sent = list(self._send())
        self.messages = list(self._arrive())

    def _speak(self) -> Iterator[bytes]:
        """Draw the words, the pauses, and what the provider does in each."""
        rng = self._rng
        yield synthesize_silence(LEAD_IN_MS, AUDIO)
        ms, count = LEAD_IN_MS, rng.randint(6, 24)
        for number in range(count):
            spans = [(0, 0), (0, 0), (2, 40), (24, 120), (60, 300)]
            pause_ms = 10 * rng.randint(*rng.choice(spans))
            proposes_ms = ends_ms = None
            if rng.random() < MANNER.proposes:
                proposes_ms = rng.choice(MANNER.proposal_ms)
                if rng.random() < MANNER.ends:
                    ends_ms = proposes_ms + rng.choice(MANNER.end_ms)
            if number == count - 1:
                pause_ms = LAST_PAUSE_MS
            yield synthesize_words([number], AUDIO)
            yield synthesize_silence(pause_ms, AUDIO)
            self.words.append(Word(ms, ms + WORD_MS))
            self._decisions[ms + WORD_MS] = Decision(proposes_ms, ends_ms)
            ms += WORD_MS + pause_ms

    def _send(self) -> Iterator[Sent]:
        """Draw when each chunk is sent."""
        rng = self._rng
        chunk_ms = rng.choice([20, 40, 100, 200, 0])
        at, ms = 0.0, 0
        while ms < self.ms:
            ms = min(self.ms, ms + (chunk_ms or rng.randint(20, 200)))
            at = max(at, ms / 1_000 + rng.uniform(0.002, 0.03))
            yield Sent(at, ms)

    def _recognize(self) -> list[tuple[float, EngineEvent]]:
        """Return what the provider sends, and when."""
        events, now = list[tuple[float, EngineEvent]](), 0.0

        def emit(event: EngineEvent) -> None:
            events.append((now, event))

        engine = ScriptStream(AUDIO, TurnSettings(), WORD_MS, emit, lambda word: word, None)
        begin = 0
        for chunk in self.sent:
            now = chunk.at
            for ms in [*(ms for ms in self._decisions if begin < ms < chunk.ms), chunk.ms]:
                _at_once(engine, self.sound[begin * BYTES_PER_MS : ms * BYTES_PER_MS])
                if ms in self._decisions:
                    engine.configure(self._decisions[ms].settings)
                begin = ms
        return events

    def _arrive(self) -> Iterator[Message]:
        """Draw which updates are sent, and when each message arrives."""
        rng, delays, arrived = self._rng, self.delays, 0.0
        for at, event in self._recognize():
            if event.kind == "turn.update" and rng.random() >= MANNER.shown:
                continue
            late_s = rng.expovariate(1 / delays.late_s) if rng.random() < delays.late_share else 0.0
            own = at + delays.lag_s + rng.uniform(0, delays.jitter_s) + late_s
            arrived = max(own, arrived + IN_ORDER_S)
            yield Message(arrived, event.kind, event.transcript or "")


class _Line(TurnsStream):
    """A socket that was never opened. What is sent on it is dropped."""

    def __init__(self) -> None:
        socket = WebSocketClient(LenientProtocol(parse_uri("ws://127.0.0.1/")), {})
        settings = StreamSettings("ink-2", Encoding.PCM_S16LE, AUDIO.sample_rate)
        super().__init__(CARTESIA, socket, Endpoint("", "", ""), settings)

    def send_audio(self, audio: bytes) -> None:
        pass


class _Worker:
    """The worker's side of a call."""

    def __init__(self, usual_lag_s: float) -> None:
        self._ledger = Ledger(Encoding.PCM_S16LE.width)
        self._sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, self._ledger, Pacer(0), Counters()
        )
        self._sender.attach(_Line(), LATER)
        lag = ProviderLag()
        lag.seed(usual_lag_s)
        self._boundary = TurnBoundaryFinder(self._sender, StallDetector(LATER), lag)
        self._boundary.reset(LATER)
        self._entries = 0

    def send(self, at: float, audio: bytes) -> None:
        self._entries += 1
        self._ledger.admit(f"{self._entries}-0", AudioEntry(audio=audio))
        self._sender.enqueue(audio)
        self._sender.drain(LATER + at)

    def receive(self, message: Message, behind: Sequence[Message]) -> int | None:
        """Receive a message with these waiting behind it; return the cut in ms at `turn.end`."""
        arrival = self._sender.send_log.moment(LATER + message.at)
        boundary = self._boundary
        boundary.on_message(arrival, len(behind))
        match message.kind:
            case "turn.start":
                boundary.on_start(arrival)
            case "turn.resume":
                boundary.on_resume(arrival)
            case _:
                boundary.on_transcript(message.text, arrival)
                if message.kind == "turn.eager_end":
                    boundary.on_eager_end(arrival)
        if message.kind != "turn.end":
            return None
        begins = bool(behind) and behind[0].kind == "turn.start"
        return boundary.find_end(arrival, begins=begins) // BYTES_PER_MS

    def commit(self, ms: int) -> None:
        self._ledger.commit_to(ms * BYTES_PER_MS)
        self._sender.forget_committed()


def simulate(seed: int, late_share: float = 0.05, late_s: float = 0.3) -> list[Ending]:
    """Simulate a call. This share of its messages is late, by this many seconds on average."""
    call = Call(seed, late_share, late_s)
    delays, messages = call.delays, call.messages
    observer = BestObserver(call.words, call.sent, delays, MANNER)
    seen = list(_seen(messages))
    worker = _Worker(delays.lag_s + delays.jitter_s / 2 + 0.06)
    endings, sent, spoken = list[Ending](), 0, 0
    for at, message in enumerate(messages):
        while sent < len(call.sent) and call.sent[sent].at <= message.at:
            begin = call.sent[sent - 1].ms if sent else 0
            audio = call.sound[begin * BYTES_PER_MS : call.sent[sent].ms * BYTES_PER_MS]
            worker.send(call.sent[sent].at, audio)
            sent += 1
        behind = [each for each in messages[at + 1 :] if each.at - message.at < TOGETHER_S]
        cut_ms = worker.receive(message, behind)
        if cut_ms is None:
            continue
        spoken += len(message.text.split())
        earliest = call.words[spoken - 1].ends
        latest = call.words[spoken].begins if spoken < len(call.words) else call.ms
        probabilities = observer.probabilities(seen[: at + 1 + len(behind)], at)
        endings.append(Ending(spoken - 1, cut_ms, earliest, latest, probabilities))
        worker.commit(min(max(cut_ms, earliest), latest))
    return endings


def _seen(messages: Sequence[Message]) -> Iterator[Seen]:
    """Yield the messages without their text, but with whether it changed."""
    text = ""
    for message in messages:
        if message.kind in ("turn.start", "turn.resume"):
            yield Seen(message.at, message.kind, changed=False)
            continue
        yield Seen(message.at, message.kind, message.text != text)
        text = "" if message.kind == "turn.end" else message.text


def _at_once(engine: ScriptStream, audio: bytes) -> None:
    """Let the engine process audio: it never waits."""
    try:
        engine.feed(audio).send(None)
    except StopIteration:
        return
    raise AssertionError("the engine waited")
