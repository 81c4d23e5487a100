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

Lag is not always steady: on a busy machine, or in a slow network, single events come late. So three
more things count. A turn was not over before the silences after which the service took its end
back. Once all that is said of a turn had been worded, the next silence covers it, whatever is said,
or sent, afterwards. And a sound after a silence that ended a turn begins the next: where nobody has
said so by the time it should be known, it was the same turn's.

Audio is looked at as 10 ms frames of what was sent, oldest first and filler included; filler counts
as silence. Quiet is relative, for lines have noise.
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from worker.core.levels import FRAME_MS

LOOKBACK_MS = 3_000
"""How much audio before what was sent is worth looking at; a longer lag than that less the pause is
not seen, and the cut falls after words of the next turn."""

MIN_END_SILENCE_MS = 200
"""No service ends a turn on less silence than this."""

MIN_SPEECH_MS = 30
"""Sound shorter than this is a click, and starts no turn."""

ONSET_DETECTION_S = (0.03, 0.2)
"""How much of a sound, at least and at most, the service hears before it says `turn.start`."""

NOISE_CEILING = 2_000
"""Loudness above which a frame is no noise, even if nothing is quieter: -24 dB."""

DEFAULT_LAG_S = 0.3
"""Lag of a service of which nothing better is known."""

LAG_CHANGE_WEIGHT = 0.5
"""What a second of difference to the turn before counts, where a second of difference between a
turn's start and its end counts 1: lag changes more easily within seconds than noise fits."""

MIN_PAUSE_MS = 150
"""Less silence than this is between words, and seldom taken for the end of a turn."""

_MIN_END_SILENCE = MIN_END_SILENCE_MS // FRAME_MS
_MIN_PAUSE = MIN_PAUSE_MS // FRAME_MS
_MIN_SPEECH = MIN_SPEECH_MS // FRAME_MS


class SilenceMap(NamedTuple):
    """What was sent last, as frames; one entry each."""

    silent: list[bool]
    positions: list[int]
    """Session byte at which the frame begins."""


class SpeechStart(NamedTuple):
    """A sound that may have begun the turn."""

    sent: int
    """Byte of the socket at which it began."""
    least_lag_s: float
    """How long before `turn.start` can have arrived, at the earliest, that was sent."""
    most_lag_s: float
    """How long before `turn.start` was taken in that was sent: more, if it was held up."""


class SilenceSpan(NamedTuple):
    """A silence that may have ended the turn."""

    sent: int
    """Byte of the socket at which it began."""
    least_lag_s: float
    """How long before `turn.end` arrived its last was sent."""
    most_lag_s: float
    """The same of the earliest moment at which it was long enough to decide on."""
    until: int
    """Byte of the socket at which it was over."""
    middle: int
    """Session byte in its middle."""
    begun: bool = True
    """Whether its beginning is seen, and not before what is looked at."""
    followed_s: float = 0.0
    """How long before `turn.end` arrived a sound was sent after it of which nothing is said yet; 0
    if there was none, or if something waits to be read that may speak of it."""


def timeline(
    levels: Sequence[int], start: int, size: int, fillers: Sequence[tuple[int, int]]
) -> SilenceMap:
    """Lay out what was sent last.

    `levels` is how loud the frames of `size` bytes from session byte `start` on are; `fillers` are
    (session byte, milliseconds) of silence that was sent between, from `start` on.
    """
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
    return SilenceMap(silent, positions)


def speech_starts(silent: Sequence[bool]) -> list[int]:
    """Return the first frame of every sound."""
    ends = [end for _, end in silences(silent) if end < len(silent)]
    return ends if not silent or silent[0] else [0, *ends]


def silence_spans(silent: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (start, end) of every silence that may have ended a turn.

    The longest, where none is as long as it should be.
    """
    runs = silences(silent)
    return [run for run in runs if run[1] - run[0] >= _MIN_END_SILENCE] or sorted(
        runs, key=lambda run: run[0] - run[1]
    )[:1]


class Candidate(NamedTuple):
    """A sound and a pause that belong together, as far as they do."""

    onset: SpeechStart
    pause: SilenceSpan
    lag_s: float
    """Of the service at the sound."""
    apart_s: float
    """By how much it was another at the pause."""

    def cost_s(self, usual_s: float) -> float:
        """Say how unlikely it is, the lag usually being that, in seconds of unexplained lag."""
        unsaid_s = max(0.0, self.pause.followed_s - self.lag_s - ONSET_DETECTION_S[1])
        return self.apart_s + unsaid_s + LAG_CHANGE_WEIGHT * abs(self.lag_s - usual_s)


def best_candidate(
    starts: Sequence[SpeechStart], ends: Sequence[SilenceSpan], usual_lag_s: float | None
) -> Candidate | None:
    """Return the sound that began the turn and the pause that ended it, None without a pause.

    `usual_lag_s` is the lag at the sound chosen for the turn before, None if there was none.
    """
    usual_s = DEFAULT_LAG_S if usual_lag_s is None else usual_lag_s
    if not starts:  # it began before what is known
        starts = [SpeechStart(-1, usual_s, usual_s)]
    elif usual_lag_s is None:
        usual_s = min(max(usual_s, starts[0].least_lag_s), starts[0].most_lag_s)
    matches = [
        score(began, ended, usual_s)
        for began in starts
        for ended in ends
        if ended.sent > began.sent
    ]
    # Of several as good as each other, as when all was held up, the first: the service heard it so.
    return min(matches, key=lambda one: one.cost_s(usual_s), default=None)


def score(began: SpeechStart, ended: SilenceSpan, usual_s: float) -> Candidate:
    """Say how well a sound and a pause belong together, the lag being `usual_s` if it can be."""
    soonest_s, latest_s = ONSET_DETECTION_S
    least = max(began.least_lag_s, ended.least_lag_s + soonest_s)
    most = min(began.most_lag_s, ended.most_lag_s + latest_s)
    if least <= most:
        return Candidate(began, ended, min(max(usual_s, least), most), 0.0)
    lag_s = began.most_lag_s if least > began.most_lag_s else began.least_lag_s
    return Candidate(began, ended, lag_s, least - most)


def spans_after_last_word(ends: Sequence[SilenceSpan], worded: int) -> Sequence[SilenceSpan]:
    """Return the pauses up to the first that lasted beyond byte `worded` of the socket.

    By then the service had worded all that it says of the turn. What follows that pause holds none
    of its words, however late its end is told, and may be the next turn's.
    """
    for count, pause in enumerate(ends, 1):
        if pause.until > worded:
            return ends[:count]
    return ends


def turn_open_until(silent: Sequence[bool], open_at: int) -> int:
    """Return up to which frame a turn was open, at least, that was resumed just now.

    That it was open at frame `open_at` is known. When the service took its end back, it had heard a
    silence since then, of some length or else however short, and then more.
    """
    over = [run for run in silences(silent) if run[0] > open_at and run[1] < len(silent)]
    long = (end for start, end in over if end - start >= _MIN_PAUSE)
    return next(long, over[0][1] if over else open_at)


def quiet_level(levels: Sequence[int]) -> int:
    """Loudness up to which a frame counts as silence: halfway, in decibels, from noise to voice.

    A word may be short, so the voice is as loud as few frames are; what is less than twice as loud
    as the noise is noise.
    """
    ordered = sorted(levels)
    noise, voice = ordered[len(ordered) // 20], ordered[-_MIN_SPEECH:][0]
    return min(max(2 * noise, isqrt(noise * voice), 20), NOISE_CEILING)


def silences(silent: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (start, end) of every run of silent frames; clicks do not break one."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    for at, quiet in enumerate([*silent, False]):
        if quiet and start is None:
            start = at
        elif not quiet and start is not None:
            if runs and start - runs[-1][1] < _MIN_SPEECH:
                start = runs.pop()[0]
            runs.append((start, at))
            start = None
    return runs
