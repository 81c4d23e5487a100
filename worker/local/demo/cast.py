"""The cast: what each session of the demo says, and how it comes over the line."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from schemas import Encoding
from worker.errors import SettingsError
from worker.local import sound
from worker.local.clips import CLIPS
from worker.local.engines.base import AudioFormat
from worker.local.engines.pcm import silence
from worker.local.sound import Sound

_SILENCE_S: Final = 1.6  # after each clip: long enough for the recognizer to end the turn
_ENTRANCE_S: Final = 1.6  # between the entrances of two sessions


class Line(msgspec.Struct, frozen=True):
    """How audio comes: its format, and the milliseconds in a chunk."""

    encoding: Encoding
    sample_rate: int
    chunk_ms: int

    @property
    def format(self) -> AudioFormat:
        """The format alone."""
        return AudioFormat(self.encoding, self.sample_rate)


class Role(msgspec.Struct, frozen=True):
    """One session: its audio, ready to be sent, and what is known of it."""

    session: str
    speaker: str
    line: Line
    enters_s: float
    audio: bytes
    speech_ends: tuple[float, ...]
    """Where speech gives way to silence, by energy, in seconds of this audio."""
    text: str | None
    """What is said; None where nobody knows."""

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.audio) / self.line.encoding.width / self.line.sample_rate

    @property
    def leaves_s(self) -> float:
        """When its last chunk is sent, in seconds of the demo."""
        return self.enters_s + self.seconds

    def chunks(self) -> Iterator[bytes]:
        """Cut the audio into what is appended at a time."""
        size = self.line.sample_rate * self.line.chunk_ms // 1000 * self.line.encoding.width
        for at in range(0, len(self.audio), size):
            yield self.audio[at : at + size]


_WIDEBAND: Final = Line(Encoding.PCM_S16LE, 16_000, 100)
_TELEPHONE: Final = Line(Encoding.PCM_MULAW, 8_000, 20)

# Sessions in the order of their entrance: name, clips, line.
_PLAYBILL: Final = (
    ("kennedy", ("kennedy",), _WIDEBAND),
    ("commands", ("commands",), _TELEPHONE),
    ("austen", ("austen-1", "austen-2"), Line(Encoding.PCM_S16LE, 16_000, 40)),
    ("sonnet-1", ("sonnet-1",), _WIDEBAND),
    ("sonnet-2", ("sonnet-2",), Line(Encoding.PCM_S16LE, 16_000, 60)),
    ("sonnet-3", ("sonnet-3",), _WIDEBAND),
)


def bundled(sessions: int | None) -> list[Role]:
    """Cast the bundled clips, again from the first where there are more sessions than roles."""
    clips = {clip.path.stem: clip for clip in CLIPS}
    names = _Names()
    cast = []
    for place in range(len(_PLAYBILL) if sessions is None else sessions):
        name, stems, line = _PLAYBILL[place % len(_PLAYBILL)]
        parts = [clips[stem] for stem in stems]
        cast.append(
            _role(
                names.take(name),
                parts[0].speaker,
                line,
                place,
                [sound.read(part.path) for part in parts],
                " ".join(part.transcript for part in parts),
            )
        )
    return cast


def of_files(files: Sequence[Path], sessions: int | None) -> list[Role]:
    """Cast the user's own files, one session each or in turns to fill `sessions`.

    Raises SettingsError with a line for each file that cannot be played.
    """
    sounds = _read(files)
    names = _Names()
    cast = []
    for place in range(len(files) if sessions is None else sessions):
        file, played = sounds[place % len(sounds)]
        name = re.sub(r"[^A-Za-z0-9._:-]+", "-", file.stem)[:32]
        cast.append(_role(names.take(name), file.name, _WIDEBAND, place, [played], None))
    return cast


def speech_ends(played: Sound) -> list[float]:
    """Tell by energy alone where speech ends, in seconds; pauses under 0.3 s do not count."""
    frame = played.rate // 100
    frames = played.samples[: len(played.samples) // frame * frame].reshape(-1, frame)
    if not len(frames):
        return []
    level = 10 * np.log10((frames**2).mean(axis=1) + 1e-9)
    # Speech goes 20 dB up and down; what is softer than -60 dBFS is no speech.
    loud = np.flatnonzero(level > max(np.percentile(level, 95) - 25, -60.0))
    parts = np.split(loud, np.flatnonzero(np.diff(loud) > 30) + 1)
    return [float(part[-1] + 1) / 100 for part in parts if len(part) > 8]  # less is a click


class _Names:
    """Gives each session a name of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        """Return `name`, numbered if it is taken."""
        fresh = name
        for number in count(2):
            if fresh not in self._taken:
                break
            fresh = f"{name}-{number}"
        self._taken.add(fresh)
        return fresh


def _read(files: Sequence[Path]) -> list[tuple[Path, Sound]]:
    sounds = []
    faults = []
    for file in files:
        try:
            sounds.append((file, sound.read(file)))
        except OSError as error:
            faults.append(f"{file}: cannot be read: {error.strerror}")
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise SettingsError(faults)
    return sounds


def _role(
    session: str, speaker: str, line: Line, place: int, sounds: Sequence[Sound], text: str | None
) -> Role:
    audio = b""
    ends: list[float] = []
    for played in sounds:
        begins_s = len(audio) / line.encoding.width / line.sample_rate
        ends += [begins_s + end for end in speech_ends(played)]
        audio += played.encode(line.format)
        audio += silence(int(_SILENCE_S * line.sample_rate), line.encoding)
    return Role(session, speaker, line, place * _ENTRANCE_S, audio, tuple(ends), text)
