"""How accurate and how fast the speech engine is: `python -m tests.bench.speech_quality`.

Plays every clip through a session in 20 ms chunks, as fast as it can, and prints a table. The
columns are: word error rate of the turns' texts, and the rate if shown text could change (`free`);
median and largest delay in ms after the sound (by energy) begins and ends; turns ended in a pause
of less than 0.8 s (`early`); CPU seconds per second of audio. A delay includes the audio played so
far and the time to process the last of it, so it is what a client playing live would see.
"""

import time
from bisect import bisect_right
from statistics import median

import anyio
import msgspec
import numpy as np

from tests.support.clips import tale_of_two_cities
from tests.support.sounds import played, samples_of
from worker.local.clips import CLIPS, Clip
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, EventKind, TurnSettings
from worker.local.emulator.engines.speech import SpeechEngine
from worker.local.emulator.engines.speech_audio import Samples
from worker.local.emulator.engines.speech_text import Tokens
from worker.local.wer import word_error_rate

AUDIO = AudioFormat("pcm_s16le", 16_000)
CHUNK = 640  # bytes: 20 ms
TAIL_S = 1.5  # of silence after each clip
HEADS = "  start ms    eager ms      end ms  CPU s/s"
PAUSE_S = 0.8  # what the default settings should wait for


class FreeEngine(SpeechEngine):
    """Decodes without regard to the text already shown."""

    async def read(self, samples: Samples, shown: Tokens) -> Tokens:
        """Decode samples alone."""
        del shown
        return await super().read(samples, ())


class Run(msgspec.Struct):
    """Result of one clip: each event with its position in seconds of audio, and the CPU cost."""

    events: list[tuple[float, EngineEvent]]
    cpu_s: float

    def times(self, kind: EventKind) -> list[float]:
        """Return when events of that kind came."""
        return [at for at, event in self.events if event.kind == kind]

    def text(self) -> str:
        """Return the texts of all turns."""
        return "".join(e.transcript or "" for _, e in self.events if e.kind == "turn.end")


async def play(engine: SpeechEngine, clip: Clip) -> Run:
    """Play one clip and the silence after it."""
    data = played(clip.path, AUDIO) + bytes(int(TAIL_S * 32_000))
    run = Run([], 0.0)
    position = began = 0.0

    def emit(event: EngineEvent) -> None:
        run.events.append((position + time.perf_counter() - began, event))

    stream = engine.open(AUDIO, TurnSettings(), (), emit)
    cpu = time.process_time()
    for at in range(0, len(data), CHUNK):
        position, began = (at + CHUNK) / 32_000, time.perf_counter()
        await stream.feed(data[at : at + CHUNK])
    await stream.flush()
    run.cpu_s = time.process_time() - cpu
    await stream.aclose()
    return run


def sounding(clip: Clip) -> tuple[list[float], list[float]]:
    """Find by energy alone when sound begins and ends; pauses under 0.2 s are ignored."""
    samples = samples_of(clip.path, 16_000)
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    level = 10 * np.log10((frames**2).mean(axis=1) + 1e-9)
    floor, top = np.percentile(level, (5, 95))
    loud = np.flatnonzero(level > floor + (top - floor) * 0.4) / 100
    parts = np.split(loud, np.flatnonzero(np.diff(loud) > 0.2) + 1)
    parts = [part for part in parts if part[-1] - part[0] > 0.1]
    return [float(part[0]) for part in parts], [float(part[-1]) + 0.01 for part in parts]


def delays(times: list[float], truth: list[float]) -> list[float]:
    """Return the delay of each event, in ms after the last true moment before it."""
    return [1000 * (at - truth[max(0, bisect_right(truth, at) - 1)]) for at in times]


def early(ends: list[float], onsets: list[float], offsets: list[float]) -> int:
    """Count the turns that ended although sound continued within `PAUSE_S`."""
    pauses = dict(enumerate(b - a for a, b in zip(offsets, onsets[1:], strict=False)))
    return sum(pauses.get(bisect_right(offsets, end) - 1, PAUSE_S) < PAUSE_S for end in ends)


class Tally(msgspec.Struct):
    """The figures of one clip, or of all."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    references: list[str] = []
    transcripts: list[str] = []
    free_transcripts: list[str] = []
    start_ms: list[float] = []
    eager_ms: list[float] = []
    end_ms: list[float] = []
    early: int = 0

    def add(self, other: "Tally") -> None:
        """Add another clip's figures."""
        for field in self.__struct_fields__:
            setattr(self, field, getattr(self, field) + getattr(other, field))

    def line(self, name: str) -> str:
        """Write one row of the table."""
        spans = (
            f"{median(span):.0f}/{max(span):.0f}" if span else "-"
            for span in (self.start_ms, self.eager_ms, self.end_ms)
        )
        errors = word_error_rate(self.references, self.transcripts)
        free = word_error_rate(self.references, self.free_transcripts)
        return (
            f"{name:10} {self.seconds:6.1f} {100 * errors:6.1f} {100 * free:6.1f} "
            f"{len(self.end_ms):6} {self.early:6}"
            + "".join(f"{span:>12}" for span in spans)
            + f"{self.cpu_s / self.seconds:10.3f}"
        )


async def main() -> None:
    """Print the table."""
    engine, free = SpeechEngine(), FreeEngine()
    print("clip            s  WER %  free %  turns  early  " + HEADS)
    total = Tally()
    for clip in (*CLIPS, tale_of_two_cities()):
        run = await play(engine, clip)
        onsets, offsets = sounding(clip)
        ends = run.times("turn.end")
        tally = Tally(
            seconds=len(samples_of(clip.path, 16_000)) / 16_000 + TAIL_S,
            cpu_s=run.cpu_s,
            references=[clip.transcript],
            transcripts=[run.text()],
            free_transcripts=[(await play(free, clip)).text()],
            start_ms=delays(run.times("turn.start"), onsets),
            eager_ms=delays(run.times("turn.eager_end"), offsets),
            end_ms=delays(ends, offsets),
            early=early(ends, onsets, offsets),
        )
        print(tally.line(clip.path.stem))
        total.add(tally)
    print(total.line("all"))


if __name__ == "__main__":
    anyio.run(main)
