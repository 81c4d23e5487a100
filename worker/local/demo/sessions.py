"""The cast: what each session of the demo says, and how it comes over the line."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from schemas import Encoding
from worker.errors import SettingsError, SoundError
from worker.local.audio_input import AudioInput, in_chunks
from worker.local.clips import CLIPS
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.pcm import silence

_SILENCE_S: Final = 1.6  # after each clip: long enough for the recognizer to end the turn
_ENTRANCE_S: Final = 1.6  # between the entrances of two sessions

_Source: TypeAlias = tuple[Path | AudioInput, float | None]
"""What to play, and how many seconds it plays, if it says so."""


class LineFormat(msgspec.Struct, frozen=True):
    """How audio comes: its format, and the milliseconds in a chunk."""

    encoding: Encoding
    sample_rate: int
    chunk_ms: int

    @property
    def format(self) -> AudioFormat:
        """The format alone."""
        return AudioFormat(self.encoding, self.sample_rate)


class DemoSession(msgspec.Struct, frozen=True):
    """One session: where its audio comes from, and what is known of it."""

    session: str
    speaker: str
    line: LineFormat
    enters_s: float
    sources: tuple[Path | AudioInput, ...]
    """Files, each with silence after it; a pipe is open already."""
    seconds: float | None
    """How long it plays, as far as its files say; None if one does not."""
    text: str | None
    """What is said; None where nobody knows."""

    @property
    def leaves_s(self) -> float | None:
        """When its last chunk is sent, in seconds of the demo, as far as it is known."""
        return None if self.seconds is None else self.enters_s + self.seconds

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give what is appended at a time. Raises SoundError where a source cannot be read."""
        size = self.line.sample_rate * self.line.chunk_ms // 1000 * self.line.encoding.width
        pieces = self._pieces(size)
        async with aclosing(pieces), aclosing(in_chunks(pieces, size)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _pieces(self, size: int) -> AsyncGenerator[bytes, None]:
        for source in self.sources:
            with AudioInput(str(source)) if isinstance(source, Path) else source as opened:
                async with aclosing(opened.pieces(self.line.format, size)) as pieces:
                    async for piece in pieces:
                        yield piece
            yield silence(int(_SILENCE_S * self.line.sample_rate), self.line.encoding)


_WIDEBAND: Final = LineFormat(Encoding.PCM_S16LE, 16_000, 100)
_TELEPHONE: Final = LineFormat(Encoding.PCM_MULAW, 8_000, 20)

# Sessions in the order of their entrance: name, clips, line.
_PLAYBILL: Final = (
    ("kennedy", ("kennedy",), _WIDEBAND),
    ("commands", ("commands",), _TELEPHONE),
    ("austen", ("austen-1", "austen-2"), LineFormat(Encoding.PCM_S16LE, 16_000, 40)),
    ("sonnet-1", ("sonnet-1",), _WIDEBAND),
    ("sonnet-2", ("sonnet-2",), LineFormat(Encoding.PCM_S16LE, 16_000, 60)),
    ("sonnet-3", ("sonnet-3",), _WIDEBAND),
)


def bundled(sessions: int | None) -> list[DemoSession]:
    """Cast the bundled clips, again from the first where there are more sessions than roles."""
    clips = {clip.path.stem: clip for clip in CLIPS}
    names = _Names()
    cast = []
    for place in range(len(_PLAYBILL) if sessions is None else sessions):
        name, stems, line = _PLAYBILL[place % len(_PLAYBILL)]
        parts = [clips[stem] for stem in stems]
        sources = _look_at([part.path for part in parts], once=False)
        cast.append(
            _role(
                names.take(name),
                parts[0].speaker,
                line,
                place,
                sources,
                " ".join(part.transcript for part in parts),
            )
        )
    return cast


def of_files(files: Sequence[Path], sessions: int | None) -> list[DemoSession]:
    """Cast the user's own files, one session each or in turns to fill `sessions`.

    Raises SettingsError with a line for each file that cannot be played.
    """
    number = len(files) if sessions is None else sessions
    sources = _look_at(files, once=number <= len(files))
    names = _Names()
    cast = []
    for place in range(number):
        file, (source, seconds) = files[place % len(files)], sources[place % len(files)]
        name = re.sub(r"[^A-Za-z0-9._:-]+", "-", file.stem)[:32]
        cast.append(_role(names.take(name), file.name, _WIDEBAND, place, [(source, seconds)], None))
    return cast


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


def _look_at(files: Sequence[Path], *, once: bool) -> list[_Source]:
    """Find out whether the files can be played, `once` or more often, and for how long."""
    sources: list[_Source] = []
    faults = []
    for file in files:
        try:
            source = AudioInput(str(file))
        except SoundError as error:
            faults.append(str(error))
            continue
        if source.is_pipe and once:
            sources.append((source, None))
            continue
        with source:
            if source.is_pipe:
                faults.append(f"{file} is a pipe, which plays once: ask for fewer --sessions")
            sources.append((file, source.seconds))
    if faults:
        for opened, _ in sources:
            if isinstance(opened, AudioInput):
                opened.__exit__()
        raise SettingsError(faults)
    return sources


def _role(
    session: str,
    speaker: str,
    line: LineFormat,
    place: int,
    sources: Sequence[_Source],
    text: str | None,
) -> DemoSession:
    seconds = 0.0
    known = True
    for _, length in sources:
        known = known and length is not None
        seconds += (length or 0.0) + _SILENCE_S
    played = tuple(source for source, _ in sources)
    return DemoSession(
        session, speaker, line, place * _ENTRANCE_S, played, seconds if known else None, text
    )
