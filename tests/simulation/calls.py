"""Simulated calls of a worker: when it sends and receives, and where it cuts turns.

The boundary, the sender and the script engine are real. Time and the socket are simulated, so that
thousands of turns with every kind of stall take seconds.
"""

import random
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from websockets.uri import parse_uri

from schemas.audio import AudioEntry, Encoding
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

LOOK_S = 0.1
"""Interval between the worker's ticks."""

TOGETHER_S = 0.003
"""Messages that arrive within this time are read together."""


class Line(TurnsStream):
    """A socket that was never opened. It stores what is sent."""

    def __init__(self) -> None:
        socket = WebSocketClient(LenientProtocol(parse_uri("ws://127.0.0.1/")), {})
        settings = StreamSettings("ink-2", Encoding.PCM_S16LE, AUDIO.sample_rate)
        super().__init__(CARTESIA, socket, Endpoint("", "", ""), settings)
        self.sent: deque[bytes] = deque()

    def send_audio(self, audio: bytes) -> None:
        self.sent.append(audio)


def boundary_of(
    sender: AudioSender, stalls: StallDetector, usual_lag_s: float
) -> TurnBoundaryFinder:
    """Return the boundary finder of a session whose worker has learned the provider's usual lag."""
    provider_lag = ProviderLag()
    provider_lag.seed(usual_lag_s)
    return TurnBoundaryFinder(sender, stalls, provider_lag)


class WorkerSide:
    """The worker's side of one call. Times are seconds of the call."""

    def __init__(self, usual_lag_s: float, ticked_at: float = 0.0) -> None:
        self._ledger = Ledger(Encoding.PCM_S16LE.width)
        self.sender = AudioSender(
            Encoding.PCM_S16LE, AUDIO.sample_rate, self._ledger, Pacer(0), Counters()
        )
        self.sender.attach(Line(), LATER)
        self._stalls = StallDetector(LATER + ticked_at)
        self._boundary = boundary_of(self.sender, self._stalls, usual_lag_s)
        self._boundary.reset(LATER)
        self._entries = 0

    def tick(self, at: float) -> None:
        """Run the stall detector's tick."""
        self._stalls.tick(LATER + at)

    def send(self, at: float, audio: bytes) -> None:
        """Send audio that continues the previous audio."""
        self._entries += 1
        self._ledger.admit(f"{self._entries}-0", AudioEntry(audio=audio))
        self.sender.enqueue(audio)
        self.sender.drain(LATER + at)

    def receive(self, at: float, kind: str, text: str = "", waiting: int = 0) -> int | None:
        """Receive a message with this many waiting behind it;

        return the cut in ms at `turn.end`.
        """
        arrival = self.sender.send_log.moment(LATER + at)
        self._boundary.on_message(arrival, waiting)
        match kind:
            case "turn.start":
                self._boundary.on_start(arrival)
            case "turn.resume":
                self._boundary.on_resume(arrival)
            case _:
                self._boundary.on_transcript(text, arrival)
                if kind == "turn.eager_end":
                    self._boundary.on_eager_end(arrival)
        return self._boundary.find_end(arrival) // BYTES_PER_MS if kind == "turn.end" else None

    def commit(self, ms: float) -> None:
        """Commit up to a millisecond of the call."""
        self._ledger.commit_to(int(ms) * BYTES_PER_MS)
        self.sender.forget_committed()


class Stall(StrEnum):
    """Part that stalls once or twice in a call, for up to two seconds each."""

    NONE = "nothing"
    DOWN = "the way from the service"
    UP = "the way to the service"
    BOTH = "both ways"
    WORKER = "the worker"


class Word(NamedTuple):
    """A spoken word, in milliseconds of the call."""

    begins: int
    ends: int


class Wrong(NamedTuple):
    """A turn that was not cut between its last word and the first word of the next turn."""

    seed: str
    cut_ms: int
    last_word_ends_ms: int
    next_word_begins_ms: float

    @property
    def early(self) -> bool:
        """Whether a replay would repeat the turn's last words.

        Otherwise it would lose the next turn's.
        """
        return self.cut_ms < self.last_word_ends_ms


class _Sent(NamedTuple):
    at: float
    begin_ms: int
    end_ms: int


class _Timed(NamedTuple):
    at: float
    event: EngineEvent


async def simulate_call(seed: str, stall: Stall, words_at_most: int) -> list[Wrong]:
    """Simulate the call that `seed` generates; return the wrong cuts."""
    rng = random.Random(f"{seed} {stall}")
    sound, words = speech(rng, words_at_most)
    still = stalls(rng, len(sound) / BYTES_PER_MS / 1_000) if stall is not Stall.NONE else []
    lag_s, jitter_s = rng.uniform(0, 0.3), rng.uniform(0, 0.15)
    sent = list(_send(rng, len(sound) // BYTES_PER_MS, still if stall is Stall.WORKER else []))
    up = still if stall in (Stall.UP, Stall.BOTH) else []
    events: list[_Timed] = []
    at = 0.0
    engine = ScriptStream(
        AUDIO,
        TurnSettings(),
        WORD_MS,
        lambda event: events.append(_Timed(at, event)),
        lambda word: word,
        None,
    )
    for chunk in sent:
        at = delayed(rng, chunk.at, up)
        await engine.feed(sound[chunk.begin_ms * BYTES_PER_MS : chunk.end_ms * BYTES_PER_MS])
    back = still if stall in (Stall.DOWN, Stall.BOTH, Stall.WORKER) else []
    received = list(_arrive(rng, events, lag_s, jitter_s, back))
    side = WorkerSide(lag_s + jitter_s / 2 + 0.06)
    ticks = [] if stall is not Stall.WORKER else _ticks(max(received[-1].at, sent[-1].at), still)
    return _live(side, sound, words, [*sent, *received, *ticks], seed)


def speech(rng: random.Random, words_at_most: int) -> tuple[bytes, list[Word]]:
    """Generate a call: three to six turns with pauses inside and between them."""
    sound, words, ms = [synthesize_silence(400, AUDIO)], list[Word](), 400
    for _ in range(rng.randint(3, 6)):
        count = rng.randint(1, words_at_most)
        for left in reversed(range(count)):
            pause_ms = rng.choice((0, 0, 10 * rng.randint(2, 40)))
            if not left:
                pause_ms = 10 * rng.randint(60, 300)
            sound += [synthesize_words([len(words)], AUDIO), synthesize_silence(pause_ms, AUDIO)]
            words.append(Word(ms, ms + round(WORD_MS)))
            ms += round(WORD_MS) + pause_ms
    return b"".join(sound), words


def stalls(rng: random.Random, seconds: float) -> list[tuple[float, float]]:
    """Generate one or two stalls, each from and to a second of the call."""
    begins = [rng.uniform(0.3, seconds) for _ in range(rng.randint(1, 2))]
    return [(begin, begin + rng.uniform(0.4, 2.0)) for begin in begins]


def delayed(rng: random.Random, at: float, stalls: Iterable[tuple[float, float]]) -> float:
    """Return when data sent at that second arrives."""
    for begin, end in stalls:
        if begin <= at < end:
            at = end + rng.uniform(0, 0.05)
    return at


def stalled(stalls: Iterable[tuple[float, float]], at: float) -> bool:
    """Return whether there is a stall at that second."""
    return any(begin <= at < end for begin, end in stalls)


def _send(rng: random.Random, ms: int, stalls: list[tuple[float, float]]) -> Iterable[_Sent]:
    chunk_ms = rng.choice((20, 40, 100, 200, 0))
    pacer, at, begin_ms = Pacer(1.5), 0.0, 0
    pacer.restart(0)
    while begin_ms < ms:
        end_ms = min(ms, begin_ms + (chunk_ms or rng.randint(20, 200)))
        at = delayed(rng, max(at, end_ms / 1_000 + rng.uniform(0.002, 0.03)), stalls)
        while pacer.allowance_ms(at) < end_ms - begin_ms:
            at += 0.02
        pacer.spend(end_ms - begin_ms)
        yield _Sent(at, begin_ms, end_ms)
        begin_ms = end_ms


def _arrive(
    rng: random.Random,
    events: Iterable[_Timed],
    lag_s: float,
    jitter_s: float,
    stalls: list[tuple[float, float]],
) -> Iterable[_Timed]:
    arrived = 0.0
    for at, event in events:
        late_s = rng.expovariate(1 / 0.3) if rng.random() < 0.05 else 0.0
        at += lag_s + rng.uniform(0, jitter_s) + late_s
        arrived = max(delayed(rng, at, stalls), arrived + 0.00005)
        yield _Timed(arrived, event)


def _ticks(until: float, stalls: list[tuple[float, float]]) -> list[float]:
    times = (step * LOOK_S for step in range(int(until / LOOK_S) + 1))
    return [at for at in times if not stalled(stalls, at)]


def _live(
    side: WorkerSide,
    sound: bytes,
    words: list[Word],
    steps: list[_Sent | _Timed | float],
    seed: str,
) -> list[Wrong]:
    """Process the steps in order of time: ticks first, then audio, then messages."""
    order = {float: 0, _Sent: 1, _Timed: 2}
    steps.sort(key=lambda step: (_time(step), order[type(step)]))
    wrong: list[Wrong] = []
    ended_words = 0
    for count, step in enumerate(steps):
        match step:
            case _Sent(at, begin_ms, end_ms):
                side.send(at, sound[begin_ms * BYTES_PER_MS : end_ms * BYTES_PER_MS])
            case _Timed(at, event):
                text = event.transcript or ""
                cut = side.receive(at, event.kind, text, _waiting(steps, count))
                if cut is None:
                    continue
                ended_words += len(text.split())
                least = words[ended_words - 1].ends
                most = words[ended_words].begins if ended_words < len(words) else float("inf")
                if not least - 10 <= cut <= most + 10:
                    wrong.append(Wrong(seed, cut, least, most))
                side.commit(min(max(cut, least), most))
            case at:
                side.tick(at)
    return wrong


def _waiting(steps: list[_Sent | _Timed | float], count: int) -> int:
    waiting = 0
    for step in steps[count + 1 :]:
        if _time(step) - _time(steps[count]) >= TOGETHER_S:
            break
        waiting += isinstance(step, _Timed)
    return waiting


def _time(step: _Sent | _Timed | float) -> float:
    return step if isinstance(step, float) else step.at
