"""The `script` engine: decodes word numbers encoded in audio; exact, deterministic and fast.

It is for tests and load: the transcript shows each lost, repeated, moved or damaged sample (see
`script_words`), and one core serves a thousand connections. Turns depend only on the audio. The
likelihood that the user is still in a turn is 0.9 when speech stops. It falls by 0.1 with each
80 ms of silence, until it reaches a threshold. A lower threshold waits longer: 240 ms for the
default `eager_end` of 0.6, 480 ms for the default `end` of 0.3. `end_timeout_ms` limits that wait.
`start` has no effect: every sound is speech.

The times of a word are those of its block, to the sample. A word is decoded when its block is
complete.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.base import (
    AudioFormat,
    EndTrigger,
    EngineEvent,
    EventKind,
    TurnSettings,
    Word,
)
from worker.local.emulator.engines.script_text import DEFAULT_STYLE, REWORDABLE, STYLES, TextStyle
from worker.local.emulator.engines.script_words import (
    QUIET,
    WORD_MS,
    WordCodec,
    synthesize_silence,
    synthesize_words,
    word_codec,
    words_of,
)
from worker.local.pcm import PcmDecoder

__all__ = [
    "ScriptEngine",
    "ScriptOptions",
    "ScriptStream",
    "synthesize_silence",
    "synthesize_words",
    "words_of",
]

ONSET_MS: Final = 40  # audio of a word processed before its turn starts or resumes
_SPEAKING: Final = 0.9  # likelihood of being in a turn when speech stops
_FADE_MS: Final = 800  # silence that lowers it by 1
_DAMAGED_CONFIDENCE: Final = 0.5


class ScriptOptions(msgspec.Struct, frozen=True):
    """Options of the engine.

    `word_ms` is the length of a word's block and must match `synthesize_words`. `latency_ms`
    simulates the provider's lag: each event is emitted that much later, in wall-clock time. With a
    `rewording` seed, a word that an earlier connection received may become `w17~` (longer) or `17`
    (shorter), as recognizers may change words in a replay. The engine then keeps all words in
    memory. `text_style` is the name of the separators, one of `STYLES`; a style without separators
    does not allow rewording.
    """

    word_ms: float = WORD_MS
    latency_ms: float = 0.0
    rewording: int | None = None
    text_style: str = DEFAULT_STYLE


class ScriptEngine:
    """Creates streams; for rewording, stores which connection received each word first."""

    name = "script"

    def __init__(self, options: ScriptOptions = ScriptOptions()) -> None:  # noqa: B008 - frozen
        if options.rewording is not None and options.text_style not in REWORDABLE:
            raise ValueError(f"words without separators cannot be reworded: {options.text_style}")
        self._options = options
        self._style = STYLES[options.text_style]
        self._opened = 0
        self._first_received: dict[str, int] = {}

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> "ScriptStream":
        """Create the stream of one connection."""
        self._opened += 1
        connection = self._opened

        def reword(word: str) -> str:
            return self._reword(word, connection)

        latency = self._options.latency_ms / 1000
        delay = _Delay(latency, emit) if latency > 0 else None
        put = delay.emit if delay else emit
        return ScriptStream(audio, turn, self._options.word_ms, put, reword, delay, self._style)

    async def aclose(self) -> None:
        """Forget all words."""
        self._first_received.clear()

    def _reword(self, word: str, connection: int) -> str:
        seed = self._options.rewording
        if seed is None or word.startswith("!"):
            return word
        if self._first_received.setdefault(word, connection) == connection:
            return word
        # Integer arithmetic, not hash(): the wording must be the same in every process.
        choice = (int(word[1:]) * 2_654_435_761 + connection * 40_503 + seed * 69_069) >> 4
        return (word, f"{word}~", word[1:])[choice % 3]


class _Delay:
    """Emits events a fixed time later, in order, without delaying audio."""

    def __init__(self, latency: float, emit: Callable[[EngineEvent], None]) -> None:
        self._latency = latency
        self._emit = emit
        self._waiting: deque[tuple[EngineEvent, asyncio.TimerHandle]] = deque()
        self._drained = anyio.Event()

    def emit(self, event: EngineEvent) -> None:
        """Schedule an event. A timer per event costs less than a task per connection."""
        timer = asyncio.get_running_loop().call_later(self._latency, self._emit_first)
        self._waiting.append((event, timer))

    def _emit_first(self) -> None:
        event, _ = self._waiting.popleft()
        self._emit(event)
        if not self._waiting:
            self._drained.set()

    async def drain(self) -> None:
        """Wait until all events are emitted."""
        while self._waiting:
            self._drained = anyio.Event()
            await self._drained.wait()

    def drop(self) -> None:
        """Cancel all scheduled events."""
        while self._waiting:
            self._waiting.popleft()[1].cancel()


class ScriptStream:
    """Audio of one connection: detects words and silences, and emits turn events."""

    def __init__(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        word_ms: float,
        emit: Callable[[EngineEvent], None],
        reword: Callable[[str], str],
        delay: _Delay | None,
        style: TextStyle = STYLES[DEFAULT_STYLE],
    ) -> None:
        self._emit = emit
        self._reword = reword
        self._delay = delay
        self._style = style
        self._decoder = PcmDecoder(audio)
        self._codec: WordCodec = word_codec(audio, word_ms)
        self._rate = audio.sample_rate
        self._onset = min(self._codec.samples, self._samples(ONSET_MS))
        self._block = np.empty(self._codec.samples, np.int8)
        self._filled = 0  # samples of the current block; 0 in silence
        self._quiet = 0  # samples of silence since the last sound
        self._position = 0  # samples processed
        self._words: tuple[Word, ...] = ()
        self._damaged = False  # whether the last word was damaged, without silence since
        self._turn: EventKind | None = None  # last start, eager end or resume of the open turn
        self._transcript = ""
        self._ended = 0
        self.configure(turn)

    async def feed(self, audio: bytes) -> None:
        """Process audio. Never waits: `latency_ms` delays events, not audio."""
        samples = self._decoder.decode(audio)
        loud = None
        at = 0
        while at < len(samples):
            if self._filled == 0:
                if loud is None:
                    loud = np.abs(samples) > QUIET
                ahead = loud[at:]
                first = int(ahead.argmax())
                if not ahead[first]:
                    self._on_silence(len(ahead))
                    return
                if first:
                    self._on_silence(first)
                at += first
            taken = min(len(self._block) - self._filled, len(samples) - at)
            self._on_sound(samples[at : at + taken])
            at += taken

    def configure(self, turn: TurnSettings) -> None:
        """Use new turn settings; they take effect with the next audio."""
        self._eager_after = self._samples(_silence_ms(turn.eager_end, turn))
        self._end_after = self._samples(_silence_ms(turn.end, turn))
        self._trigger: EndTrigger = (
            "timeout" if _fade_ms(turn.end) > turn.end_timeout_ms else "model"
        )

    def report(self) -> None:
        """Emit a `progress` event; words of an incomplete block are not decoded."""
        self._emit(self._event("progress", self._transcript))

    async def end_turn(self) -> None:
        """End the open turn; the word of an incomplete block belongs to the next one."""
        if self._turn is not None:
            self._end_turn("manual", self._position - self._filled)
        else:
            self._emit(self._event("progress", "", trigger="manual"))

    async def flush(self) -> None:
        """Decode the incomplete last word, end the open turn, wait for delayed events."""
        while self._filled:
            self._on_word()
        if self._turn is not None:
            self._end_turn("flush", self._position)
        if self._delay is not None:
            await self._delay.drain()

    async def aclose(self) -> None:
        """Drop the delayed events."""
        if self._delay is not None:
            self._delay.drop()

    def _samples(self, ms: float) -> int:
        return max(1, round(self._rate * ms / 1000))

    def _on_silence(self, samples: int) -> None:
        self._damaged = False
        begin = self._position
        self._position += samples
        self._quiet += samples
        if self._turn is None:
            return
        sound_end = self._position - self._quiet
        if self._turn != "turn.eager_end" and self._quiet >= self._eager_after:
            self._emit_turn("turn.eager_end", max(begin, sound_end + self._eager_after))
        if self._quiet >= self._end_after:
            self._end_turn(self._trigger, max(begin, sound_end + self._end_after))

    def _on_sound(self, samples: NDArray[np.float32]) -> None:
        filled = self._filled + len(samples)
        self._position += len(samples)
        self._block[self._filled : filled] = self._codec.symbols(samples)
        self._filled = filled
        self._quiet = 0
        if filled >= self._onset:
            self._start_or_resume()
        if filled == len(self._block):
            self._on_word()

    def _on_word(self) -> None:
        start = self._position - self._filled
        reading = self._codec.decode(self._block[: self._filled])
        rest = self._filled - reading.samples
        self._block[:rest] = self._block[reading.samples : self._filled]
        self._filled = rest
        damaged = reading.word.startswith("!")
        self._start_or_resume()
        end_s = (start + reading.samples) / self._rate
        if damaged and self._damaged:  # continuous damage becomes one word
            self._words = _extended(self._words, end_s)
        else:
            style = self._style
            begin = style.later if self._ended else style.begin
            separator = style.between if self._transcript else begin
            text = self._reword(reading.word)
            self._transcript += separator + text + style.after
            confidence = _DAMAGED_CONFIDENCE if damaged else 1.0
            word = Word(text, start / self._rate, end_s, confidence)
            self._words = (*self._words, word)
            self._emit(self._event("turn.update", self._transcript))
        self._damaged = damaged

    def _start_or_resume(self) -> None:
        """Start a turn, or resume one after an eager end."""
        if self._turn is None:
            self._emit_turn("turn.start")
        elif self._turn == "turn.eager_end":
            self._emit_turn("turn.resume")

    def _emit_turn(self, kind: EventKind, position: int | None = None) -> None:
        self._turn = kind
        text = self._transcript if kind == "turn.eager_end" else None
        self._emit(self._event(kind, text, position))

    def _end_turn(self, trigger: EndTrigger, position: int) -> None:
        self._emit(self._event("turn.end", self._transcript, position, trigger))
        self._turn = None
        self._transcript = ""
        self._words = ()
        self._ended += 1

    def _event(
        self,
        kind: EventKind,
        text: str | None,
        position: int | None = None,
        trigger: EndTrigger = "model",
    ) -> EngineEvent:
        """Return an event at a position; None is before the incomplete block."""
        if position is None:
            position = self._position - self._filled
        likelihood = 0.0
        if self._turn is not None:
            quiet = max(0, position - (self._position - self._quiet))
            likelihood = min(1.0, 1 - _SPEAKING + 1000 * quiet / self._rate / _FADE_MS)
        return EngineEvent(kind, text, self._words, position / self._rate, likelihood, trigger)


def _extended(words: tuple[Word, ...], end_s: float) -> tuple[Word, ...]:
    """Return the words, of which the last ends later. If it was in an ended turn, there is none."""
    return (*words[:-1], *(msgspec.structs.replace(word, end_s=end_s) for word in words[-1:]))


def _silence_ms(threshold: float, turn: TurnSettings) -> float:
    return min(_fade_ms(threshold), turn.end_timeout_ms)


def _fade_ms(threshold: float) -> float:
    return _FADE_MS * (_SPEAKING - threshold) if threshold > 0 else math.inf
