"""The real speech engine: Silero hears the turns, Moonshine reads them. English only.

Offline: all weights lie in installed packages. Accuracy and turn timing are not those of the
hosted model; keyterms are not used, for this recognizer has no way to prefer words.

Voice activity is followed on the event loop (0.3 ms per 100 ms of audio), so that no turn starts
late for another connection's decodes. Those run in threads, one per core. A hearing has at most
one under way and hears on when it is done: `feed` returning late is its backpressure, and with
the sample count as the only clock the same audio gives the same events at any pace and in any
chunking. Only where decodes already queue up are those for updates left out; the others never.
"""

import os
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from worker.local.emulator.engines.base import AudioFormat, EngineEvent, EventKind, TurnSettings
from worker.local.emulator.engines.moonshine import Moonshine
from worker.local.emulator.engines.silero import Silero
from worker.local.emulator.engines.speech_audio import Framer, Samples, Segment, windows
from worker.local.emulator.engines.speech_text import Tokens, Transcript
from worker.local.emulator.engines.speech_turns import SPEECH, TurnDetector

_PREROLL: Final = windows(0.4)  # kept before speech: its soft beginning is not yet called speech
_TAIL: Final = windows(0.15)  # read after speech: the same of its end
_TOO_SHORT: Final = windows(0.2)  # of speech; in less the recognizer hears "You"
_UPDATE_EVERY: Final = windows(0.5)

# Reading costs more than its share on long segments and goes wrong beyond 15 s, so one that
# grows long is cut at the first short pause, and if none comes at the quietest point of its last
# 2 s. No updates are read in those: the cut must not fall before words already shown.
_LONG: Final = windows(8.0)
_PAUSE: Final = windows(0.2)
_LONGEST: Final = windows(14.0)
_UNSHOWN: Final = windows(2.0)


class SpeechEngine:
    """What all connections share: two models and as many threads as there are cores.

    Loading takes about half a second. Raises LocalPartMissing if weights are missing or changed.
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
        """Begin to hear one connection. Raises KeyError for an unknown encoding."""
        return SpeechStream(self, audio, turn, emit)

    async def aclose(self) -> None:
        """Do nothing: the threads are the event loop's, the weights go with the last hearing."""

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
    """One connection being heard. Up to 1 MB while a turn is open, 30 kB else."""

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
        self._lead = ""  # before every text, so that the texts of turns can be joined as they are
        self._unread = 0  # windows since the last reading

    async def feed(self, audio: bytes) -> None:
        """Hear more audio; returns when all that it gives is emitted."""
        for window in self._framer.take(audio):
            await self._hear(window)

    def configure(self, turn: TurnSettings) -> None:
        """Use other turn settings from the next window on."""
        self._detector.settings = turn

    async def flush(self) -> None:
        """Hear what is left of the last window, and end the turn if one is open."""
        for window in self._framer.end():
            await self._hear(window)
        if self._detector.end():
            await self._end_turn()

    async def aclose(self) -> None:
        """Let go of the audio held."""
        self._segment = Segment()

    async def _hear(self, window: Samples) -> None:
        probability = self._voice.probability(window)
        self._segment.append(window, voiced=probability > SPEECH)
        self._unread += 1
        match self._detector.hear(probability):
            case "turn.start":
                self._transcript = Transcript(self._engine.recognizer)
                self._unread = 0
                self._tell("turn.start")
            case "turn.eager_end":
                await self._settle()
                self._tell("turn.eager_end", self._transcript.text)
            case "turn.resume":
                self._tell("turn.resume")
            case "turn.end":
                await self._end_turn()
            case None if self._detector.in_turn:
                await self._follow()
        if not self._detector.in_turn or not self._segment.speech:
            self._segment.cut(max(0, len(self._segment) - _PREROLL))
        await checkpoint()

    async def _follow(self) -> None:
        """Within a turn: read on when enough was said, cut what grows too long."""
        shown = self._transcript.text
        length = len(self._segment)
        quiet = length - self._segment.speech_end
        if length >= _LONGEST:
            await self._settle(self._segment.quietest(length - _UNSHOWN))
        elif length >= _LONG and quiet >= _PAUSE:
            await self._settle()
        elif (
            self._detector.state == "speaking"
            and self._unread >= _UPDATE_EVERY
            and quiet < self._unread
            and length < _LONGEST - _UNSHOWN
            and self._segment.speech >= _TOO_SHORT
            and not self._engine.loaded
        ):
            self._transcript.read(await self._read(length))
        if self._detector.state == "speaking" and self._transcript.text != shown:
            self._tell("turn.update", self._transcript.text)

    async def _settle(self, end: int | None = None) -> None:
        """Read the segment to its end and begin the next; `end` is by default that of its speech.

        What holds too little speech to be read is kept, or dropped where `end` has to be.
        """
        if self._segment.speech >= _TOO_SHORT:
            if end is None:
                end = min(len(self._segment), self._segment.speech_end + _TAIL)
            self._transcript.settle(await self._read(end))
        self._segment.cut(end or 0)

    async def _read(self, end: int) -> Tokens:
        self._unread = 0
        return await self._engine.read(self._segment.audio(end), self._transcript.shown)

    async def _end_turn(self) -> None:
        await self._settle()
        self._segment.cut(self._segment.speech_end)
        text = self._transcript.text
        self._tell("turn.end", text)
        if text:
            self._lead = " "

    def _tell(self, kind: EventKind, text: str | None = None) -> None:
        self._emit(EngineEvent(kind, self._lead + text if text else text))
