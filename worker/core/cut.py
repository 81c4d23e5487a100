"""Where a turn's audio ends.

The service gives no timestamps, so when `turn.end` arrives it is ours to say which audio the turn
covers. A cut too early says the turn's last words again after a lost socket; one too late swallows
the first words of the next turn.

The service had heard a pause when it decided, and before that a sound when it said `turn.start`.
How late it speaks is not known, but it is about as late both times: so of the sounds that may have
begun the turn and the pauses that may have ended it, those belong together that were sent equally
long before the events arrived. Where several pairs do (a cough before the turn and a pause inside
it), the lag of the turn before decides; on a new socket the first sound counts, which is the
turn's unless there was noise.

Audio is looked at as 10 ms frames of what was sent, oldest first and filler included; filler counts
as silence. Quiet is relative, for lines have noise.
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from schemas.audio import Encoding
from worker.core.pcm import FRAME_MS, frame_bytes, loudness

LOOK_BACK_MS = 3_000
"""How much audio before what was sent is worth looking at; a longer lag than that less the pause is
not seen, and the cut falls after words of the next turn."""

PAUSE_MS = 200
"""No service ends a turn on less silence than this."""

ONSET_MS = 30
"""Sound shorter than this is a click, and starts no turn."""

SURE_S = (0.03, 0.2)
"""How much of a sound, at least and at most, the service hears before it says `turn.start`."""

STEADY = 0.5
"""What a second of difference to the turn before counts, where a second of difference between a
turn's start and its end counts 1: lag changes more easily within seconds than noise fits."""

_PAUSE = PAUSE_MS // FRAME_MS
_ONSET = ONSET_MS // FRAME_MS


class Timeline(NamedTuple):
    """What was sent last, as frames; one entry each."""

    silent: list[bool]
    positions: list[int]
    """Session byte at which the frame begins."""


class Onset(NamedTuple):
    """A sound that may have begun the turn."""

    sent: int
    """Byte of the socket at which it began."""
    lag_s: float
    """How long before `turn.start` arrived that was sent."""


class Pause(NamedTuple):
    """A silence that may have ended the turn."""

    sent: int
    """Byte of the socket at which it began."""
    least_lag_s: float
    """How long before `turn.end` arrived its last was sent."""
    most_lag_s: float
    """The same of the earliest moment at which it was long enough to decide on."""
    middle: int
    """Session byte in its middle."""


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
    filler = [0] * (sum(filler_ms for _, filler_ms in fillers) // FRAME_MS)
    # Filler may be the only silence there is, in the audio of a producer that sends none.
    quiet = quiet_level([*levels, *filler]) if levels else 0
    silent = [level <= quiet for level in levels]
    positions = [start + at * size for at in range(len(levels))]
    for position, filler_ms in reversed(fillers):
        at = min(len(silent), max(0, -(-(position - start) // size)))
        frames = filler_ms // FRAME_MS
        silent[at:at] = [True] * frames
        positions[at:at] = [position] * frames
    return Timeline(silent, positions)


def onsets(silent: Sequence[bool]) -> list[int]:
    """Return the first frame of every sound."""
    ends = [end for _, end in silences(silent) if end < len(silent)]
    return ends if not silent or silent[0] else [0, *ends]


def pauses(silent: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (start, end) of every silence that may have ended a turn.

    The longest, where none is as long as it should be.
    """
    runs = silences(silent)
    return [run for run in runs if run[1] - run[0] >= _PAUSE] or sorted(
        runs, key=lambda run: run[0] - run[1]
    )[:1]


def choose_pair(
    starts: Sequence[Onset], ends: Sequence[Pause], usual_lag_s: float | None
) -> tuple[Onset, Pause] | None:
    """Return the sound that began the turn and the pause that ended it, None without any.

    `usual_lag_s` is the lag of the onset chosen for the turn before, None if there was none.
    """
    if not starts:
        return None
    usual_s = starts[0].lag_s if usual_lag_s is None else usual_lag_s

    def strangeness(pair: tuple[Onset, Pause]) -> float:
        return apart_s(*pair) + STEADY * abs(pair[0].lag_s - usual_s)

    pairs = ((began, ended) for began in starts for ended in ends if ended.sent > began.sent)
    return min(pairs, key=strangeness, default=None)


def apart_s(began: Onset, ended: Pause) -> float:
    """Return by how much the service's lag would differ between a turn's start and its pause."""
    least, most = (began.lag_s - sure_s for sure_s in reversed(SURE_S))
    return max(0.0, least - ended.most_lag_s, ended.least_lag_s - most)


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
