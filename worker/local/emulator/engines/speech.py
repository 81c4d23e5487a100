"""Speech engine: Silero detects the turns, Moonshine transcribes them. English only.

Offline: all weights are part of installed packages. Accuracy and turn timing differ from the
hosted model. Keyterms are ignored, because this recognizer cannot prefer words.

Voice activity runs on the event loop (0.3 ms per 100 ms of audio), so that decodes of other
connections do not delay the start of a turn. Decodes run in threads, one per core. A stream has
at most one decode running and continues when it is done: a late return of `feed` is backpressure.
The sample count is the only clock. The same audio gives the same events at any pace and in any
chunking. When decodes queue up, decodes for updates are skipped; others never are.

The recognizer gives no times of words. They are estimates: the words of a decode divide evenly the
time from the end of the word before them, or the start of speech, to the end of speech.
"""

import os
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from worker.local.emulator.engines.base import (
    AudioFormat,
    EndTrigger,
    EngineEvent,
    EventKind,
    TurnSettings,
    Word,
)
from worker.local.emulator.engines.moonshine import Moonshine
from worker.local.emulator.engines.silero import Silero
from worker.local.emulator.engines.speech_audio import WINDOW_S, Framer, Samples, Segment, windows
from worker.local.emulator.engines.speech_text import Tokens, Transcript
from worker.local.emulator.engines.speech_turns import SPEECH, TurnDetector

_PREROLL: Final = windows(0.4)  # kept before speech: the VAD misses its soft beginning
_TAIL: Final = windows(0.15)  # decoded after speech: the VAD misses its soft end
_TOO_SHORT: Final = windows(0.2)  # minimum speech: for less, the recognizer returns "You"
_UPDATE_EVERY: Final = windows(0.5)

# Decoding long segments costs more than proportionally, and fails beyond 15 s. A long segment is
# cut at the first short pause, or else at the quietest point of its last 2 s. Those 2 s are not
# decoded for updates: the cut must not precede words already shown.
_LONG: Final = windows(8.0)
_PAUSE: Final = windows(0.2)
_LONGEST: Final = windows(14.0)
_KEPT: Final = windows(2.0)


class SpeechEngine:
    """Two models and one thread per core, shared by all connections.

    Loading takes about half a second. Raises MissingExtraError if weights are missing or changed.
    """

    name = "speech"

    def __init__(self) -> None:
        self.recognizer = Moonshine()
        self.silero = Silero()
        self._cores = anyio.CapacityLimiter(os.cpu_count() or 1)

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> "SpeechStream":
        """Create the stream of one connection. Raises ValueError for an unknown encoding."""
        return SpeechStream(self, audio, turn, emit)

    async def aclose(self) -> None:
        """Do nothing: the event loop owns the threads, and the last stream frees the weights."""

    @property
    def loaded(self) -> bool:
        """Whether decodes are queuing up."""
        return self._cores.statistics().tasks_waiting >= self._cores.total_tokens

    async def read(self, samples: Samples, shown: Tokens) -> Tokens:
        """Decode samples in a thread, continuing the tokens already shown."""
        return await anyio.to_thread.run_sync(
            self.recognizer.decode, samples, shown, limiter=self._cores
        )


class SpeechStream:
    """Audio of one connection. Uses up to 1 MB while a turn is open, otherwise 30 kB."""

    def __init__(
        self,
        engine: SpeechEngine,
        audio: AudioFormat,
        turn: TurnSettings,
        emit: Callable[[EngineEvent], None],
    ) -> None:
        self._engine = engine
        self._emit = emit
        self._framer = Framer(audio)
        self._voice = engine.silero.voice()
        self._detector = TurnDetector(turn)
        self._segment = Segment()
        self._transcript = Transcript(engine.recognizer)
        self._lead = ""  # before every text, so that the texts of turns can be joined verbatim
        self._undecoded = 0  # windows since the last decode
        self._processed = 0  # windows since the stream began
        self._words: tuple[Word, ...] = ()
        self._decoded_s = 0.0  # the end of the last word of the turn

    async def feed(self, audio: bytes) -> None:
        """Process audio; return when all its events are emitted."""
        for window in self._framer.take(audio):
            await self._process(window)

    def configure(self, turn: TurnSettings) -> None:
        """Use new turn settings from the next window on."""
        self._detector.settings = turn

    def report(self) -> None:
        """Emit a `progress` event."""
        self._emit_event("progress", self._transcript.text if self._detector.in_turn else "")

    async def end_turn(self) -> None:
        """Decode the audio of the open turn, and end it."""
        if self._detector.end():
            await self._end_turn("manual")
        else:
            self._emit_event("progress", "", "manual")

    async def flush(self) -> None:
        """Process the incomplete last window, and end the open turn."""
        for window in self._framer.end():
            await self._process(window)
        if self._detector.end():
            await self._end_turn("flush")

    async def aclose(self) -> None:
        """Release the buffered audio."""
        self._segment = Segment()

    async def _process(self, window: Samples) -> None:
        probability = self._voice.probability(window)
        self._processed += 1
        self._segment.append(window, voiced=probability > SPEECH)
        self._undecoded += 1
        match self._detector.update(probability):
            case "turn.start":
                self._transcript = Transcript(self._engine.recognizer)
                self._undecoded = 0
                self._decoded_s = 0.0
                self._emit_event("turn.start")
            case "turn.eager_end":
                await self._settle()
                self._emit_event("turn.eager_end", self._transcript.text)
            case "turn.resume":
                self._emit_event("turn.resume")
            case "turn.end":
                await self._end_turn(self._detector.trigger)
            case None if self._detector.in_turn:
                await self._follow()
        if not self._detector.in_turn or not self._segment.speech:
            self._segment.cut(max(0, len(self._segment) - _PREROLL))
        await checkpoint()

    async def _follow(self) -> None:
        """Within a turn: decode for an update after enough speech; cut a long segment."""
        shown = self._transcript.text
        length = len(self._segment)
        quiet = length - self._segment.speech_end
        if length >= _LONGEST:
            await self._settle(self._segment.quietest(length - _KEPT))
        elif length >= _LONG and quiet >= _PAUSE:
            await self._settle()
        elif (
            self._detector.state == "speaking"
            and self._undecoded >= _UPDATE_EVERY
            and quiet < self._undecoded
            and length < _LONGEST - _KEPT
            and self._segment.speech >= _TOO_SHORT
            and not self._engine.loaded
        ):
            self._transcript.read(await self._read(length))
        if self._detector.state == "speaking" and self._transcript.text != shown:
            self._time_words()
            self._emit_event("turn.update", self._transcript.text)

    async def _settle(self, end: int | None = None) -> None:
        """Decode the segment up to `end` (default: the end of speech), and begin the next.

        A segment with too little speech is kept, or dropped if `end` is given.
        """
        if self._segment.speech >= _TOO_SHORT:
            if end is None:
                end = min(len(self._segment), self._segment.speech_end + _TAIL)
            self._transcript.settle(await self._read(end))
            self._time_words(end)
        self._segment.cut(end or 0)

    async def _read(self, end: int) -> Tokens:
        self._undecoded = 0
        return await self._engine.read(self._segment.audio(end), self._transcript.shown)

    async def _end_turn(self, trigger: EndTrigger) -> None:
        await self._settle()
        self._segment.cut(self._segment.speech_end)
        text = self._transcript.text
        self._emit_event("turn.end", text, trigger)
        self._words = ()
        if text:
            self._lead = " "

    def _emit_event(
        self, kind: EventKind, text: str | None = None, trigger: EndTrigger = "model"
    ) -> None:
        text = self._lead + text if text else text
        ended = kind == "turn.end" or self._detector.in_turn
        likelihood = 1.0 - self._detector.likelihood if ended else 0.0
        self._emit(EngineEvent(kind, text, self._words, self._position_s(), likelihood, trigger))

    def _position_s(self) -> float:
        """Return the position before which no word is undecoded.

        The last 0.4 s of silence are not before it: the next turn may begin in them.
        """
        return max(self._segment_start_s(), self._words[-1].end_s if self._words else 0.0)

    def _segment_start_s(self) -> float:
        return (self._processed - len(self._segment)) * WINDOW_S

    def _time_words(self, end: int | None = None) -> None:
        """Estimate the times of the words shown since the last call.

        They end where the speech of the segment ends, or at window `end` if that is earlier.
        """
        new = self._transcript.text.split()[len(self._words) :]
        if not new:
            return
        segment = self._segment
        speech_end = segment.speech_end if end is None else min(end, segment.speech_end)
        begin_s = max(self._decoded_s, self._segment_start_s() + segment.speech_start * WINDOW_S)
        end_s = max(begin_s, self._segment_start_s() + speech_end * WINDOW_S)
        step_s = (end_s - begin_s) / (len(new) + self._transcript.unshown_words)
        self._words += tuple(
            Word(text, begin_s + at * step_s, begin_s + (at + 1) * step_s)
            for at, text in enumerate(new)
        )
        self._decoded_s = self._words[-1].end_s
