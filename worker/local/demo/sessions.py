"""Sessions of the demo: their audio, and the format in which it is sent."""

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from schemas import Encoding
from worker.errors import SettingsError, SoundError
from worker.local.audio_input import AudioInput, in_chunks
from worker.local.clips import CLIPS
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import silence

_SILENCE_S: Final = 1.6  # after each clip: long enough for the recognizer to end the turn

START_GAP_S: Final = 1.6
"""Time between the starts of two sessions."""

FAIL_OVER_GAP_S: Final = 3.6
"""The same if a provider fails: some sessions start before that, others while it is away, and
others when it is back."""

_Source: TypeAlias = tuple[Path | AudioInput, float | None]
"""Audio source, and its duration in seconds if known."""


class LineFormat(msgspec.Struct, frozen=True):
    """Audio format, and the milliseconds in a chunk."""

    encoding: Encoding
    sample_rate: int
    chunk_ms: int

    @property
    def format(self) -> AudioFormat:
        """Encoding and sample rate."""
        return AudioFormat(self.encoding, self.sample_rate)


class DemoSession(msgspec.Struct, frozen=True):
    """One session: its audio sources and what is known about them."""

    session: str
    speaker: str
    line: LineFormat
    enters_s: float
    sources: tuple[Path | AudioInput, ...]
    """Files, each followed by silence; a pipe is already open."""
    seconds: float | None
    """Duration of the audio; None if a file does not have one."""
    text: str | None
    """Reference transcript; None if unknown."""

    @property
    def leaves_s(self) -> float | None:
        """Time of the last chunk, in seconds of the demo; None if unknown."""
        return None if self.seconds is None else self.enters_s + self.seconds

    async def chunks(self, warn: Callable[[str], None]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks to append; `warn` of damage. Raises SoundError if a source fails."""
        size = self.line.sample_rate * self.line.chunk_ms // 1000 * self.line.encoding.width
        pieces = self._pieces(size, warn)
        async with aclosing(pieces), aclosing(in_chunks(pieces, size)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _pieces(self, size: int, warn: Callable[[str], None]) -> AsyncGenerator[bytes, None]:
        for source in self.sources:
            with AudioInput(str(source)) if isinstance(source, Path) else source as opened:
                async with aclosing(opened.pieces(self.line.format, size)) as pieces:
                    async for piece in pieces:
                        yield piece
            if opened.notice:
                warn(opened.notice)
            yield silence(int(_SILENCE_S * self.line.sample_rate), self.line.encoding)


_WIDEBAND: Final = LineFormat(Encoding.PCM_S16LE, 16_000, 100)
_TELEPHONE: Final = LineFormat(Encoding.PCM_MULAW, 8_000, 20)

# Sessions in the order of their start: name, clips, format.
_BUNDLED: Final = (
    ("kennedy", ("kennedy",), _WIDEBAND),
    ("commands", ("commands",), _TELEPHONE),
    ("austen", ("austen-1", "austen-2"), LineFormat(Encoding.PCM_S16LE, 16_000, 40)),
    ("sonnet-1", ("sonnet-1",), _WIDEBAND),
    ("sonnet-2", ("sonnet-2",), LineFormat(Encoding.PCM_S16LE, 16_000, 60)),
    ("sonnet-3", ("sonnet-3",), _WIDEBAND),
)


def bundled(sessions: int | None, gap_s: float = START_GAP_S) -> list[DemoSession]:
    """Return sessions of the bundled clips, repeated if `sessions` exceeds their number.

    They start `gap_s` seconds after each other.
    """
    clips = {clip.path.stem: clip for clip in CLIPS}
    result = []
    for name, stems, line in islice(cycle(_BUNDLED), sessions or len(_BUNDLED)):
        parts = [clips[stem] for stem in stems]
        sources = _probe([part.path for part in parts], once=False)
        text = " ".join(part.transcript for part in parts)
        result.append(_session(name, parts[0].speaker, line, sources, text))
    return _arranged(result, gap_s)


def of_files(
    files: Sequence[Path], sessions: int | None, gap_s: float = START_GAP_S
) -> list[DemoSession]:
    """Return sessions of the user's files: one each, or repeated to fill `sessions`.

    They start `gap_s` seconds after each other. Raises SettingsError with a line for each file that
    cannot be played.
    """
    number = len(files) if sessions is None else sessions
    sources = _probe(files, once=number <= len(files))
    result = []
    for file, source in islice(cycle(zip(files, sources, strict=True)), number):
        name = re.sub(r"[^A-Za-z0-9._:-]+", "-", file.stem)[:32]
        result.append(_session(name, file.name, _WIDEBAND, [source], None))
    return _arranged(result, gap_s)


def _session(
    name: str, speaker: str, line: LineFormat, sources: Sequence[_Source], text: str | None
) -> DemoSession:
    seconds: float | None = 0.0
    for _, length in sources:
        seconds = None if seconds is None or length is None else seconds + length + _SILENCE_S
    return DemoSession(name, speaker, line, 0.0, tuple(each for each, _ in sources), seconds, text)


def _arranged(sessions: Iterable[DemoSession], gap_s: float) -> list[DemoSession]:
    """Give sessions of the same name a number, and let one start after another."""
    arranged: dict[str, DemoSession] = {}
    for place, session in enumerate(sessions):
        numbered = (f"{session.session}-{number}" for number in count(2))
        name = next(each for each in chain([session.session], numbered) if each not in arranged)
        arranged[name] = msgspec.structs.replace(session, session=name, enters_s=place * gap_s)
    return list(arranged.values())


def _probe(files: Sequence[Path], *, once: bool) -> list[_Source]:
    """Check that the files can be played, `once` or repeatedly; return their durations."""
    sources: list[_Source] = []
    errors = []
    for file in files:
        try:
            source = AudioInput(str(file))
        except SoundError as error:
            errors.append(str(error))
            continue
        if source.is_pipe and once:
            sources.append((source, None))
            continue
        with source:
            if source.is_pipe:
                errors.append(f"{file} is a pipe and can be played only once: use fewer --sessions")
            sources.append((file, source.seconds))
    if errors:
        for opened, _ in sources:
            if isinstance(opened, AudioInput):
                opened.__exit__()
        raise SettingsError(errors)
    return sources
