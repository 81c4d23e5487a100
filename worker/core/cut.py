"""Where a turn's audio ends.

The service gives no timestamps, so when `turn.end` arrives it is ours to say which audio the turn
covers. A cut too early says the turn's last words again after a lost socket; one too late swallows
the first words of the next turn.

The service had heard a silence when it decided, and we know how late it speaks: when `turn.start`
arrived, the sound that caused it had been sent some time before, and that lag is the service's and
the network's. So at `turn.end` the service had heard what was sent up to one lag ago, and the cut
belongs in the silence that it was hearing then; not in the last one before now, which may follow
words of the next turn, nor in the first one after the turn began, which may be a pause inside it.

Audio is looked at as 10 ms frames of what was sent, oldest first and filler included; filler counts
as silence. Quiet is relative, for lines have noise.
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from schemas.audio import Encoding
from worker.core.pcm import FRAME_MS, frame_bytes, loudness

LAG_S = 1.5
"""Longest lag believed in, in seconds. A service slower than that is taken to be this slow, and the
cut may fall in a silence after words of the next turn."""

USUAL_LAG_S = 0.3
"""Lag assumed where none was measured."""

SLACK_S = 0.1
"""The lag holds what the service needs to be sure of speech, which its end does not cost again."""

LOOK_BACK_MS = 3_000
"""How much audio before what was sent is worth looking at."""

PAUSE_MS = 200
"""No service ends a turn on less silence than this."""

ONSET_MS = 30
"""Sound shorter than this is a click, and starts no turn."""

_PAUSE = PAUSE_MS // FRAME_MS
_ONSET = ONSET_MS // FRAME_MS


class Timeline(NamedTuple):
    """What was sent last, as frames; one entry each."""

    silent: list[bool]
    positions: list[int]
    """Session byte at which the frame begins."""


def timeline(
    audio: bytes,
    start: int,
    fillers: Sequence[tuple[int, int]],
    encoding: Encoding,
    sample_rate: int,
) -> Timeline:
    """Lay out what was sent last.

    `audio` begins at session byte `start`, on a sample boundary; `fillers` are (session byte,
    milliseconds) of silence that was sent between, from `start` on.
    """
    size = frame_bytes(encoding, sample_rate)
    levels = loudness(audio, encoding, sample_rate)
    quiet = quiet_level(levels) if levels else 0
    silent = [level <= quiet for level in levels]
    positions = [start + at * size for at in range(len(levels))]
    for position, filler_ms in reversed(fillers):
        at = min(len(silent), max(0, -(-(position - start) // size)))
        frames = filler_ms // FRAME_MS
        silent[at:at] = [True] * frames
        positions[at:at] = [position] * frames
    return Timeline(silent, positions)


def onset(silent: Sequence[bool]) -> int | None:
    """Return the first frame of the first sound, None if there is none."""
    run = 0
    for at, quiet in enumerate(silent):
        run = 0 if quiet else run + 1
        if run == _ONSET:
            return at - _ONSET + 1
    return None


def choose_cut(silent: Sequence[bool], *, began: int, heard: int) -> int:
    """Return the frame at which the turn's audio ends, 0 to `len(silent)`.

    `began` is a frame at or after which the turn's sound began (0 or less: before the first), and
    `heard` the frame up to which the service had heard when it decided.
    """
    heard = min(heard, len(silent))
    runs = [run for run in silences(silent) if run[1] > began and run[0] < heard]
    for start, end in reversed(runs):
        if heard - start >= _PAUSE and end - start >= _PAUSE:
            return (start + end) // 2
    if runs:
        start, end = max(runs, key=lambda run: run[1] - run[0])
        return (start + end) // 2
    return max(heard, 0)


def quiet_level(levels: Sequence[int]) -> int:
    """Loudness up to which a frame counts as silence: halfway, in decibels, from noise to voice.

    A word may be short, so the voice is as loud as few frames are; what is less than twice as loud
    as the noise is noise.
    """
    ordered = sorted(levels)
    noise, voice = ordered[len(ordered) // 20], ordered[-_ONSET:][0]
    return max(2 * noise, isqrt(noise * voice), 20)


def silences(silent: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (start, end) of every run of silent frames; clicks do not break one."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    for at, quiet in enumerate([*silent, False]):
        if quiet and start is None:
            start = at
        elif not quiet and start is not None:
            if runs and start - runs[-1][1] < _ONSET:
                start = runs.pop()[0]
            runs.append((start, at))
            start = None
    return runs
