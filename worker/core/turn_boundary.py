"""Where a turn's audio ends.

The provider sends no timestamps, so the worker must find the audio that a `turn.end` covers. After
a lost socket, a cut too early repeats the turn's last words. A cut too late loses the first words
of the next turn.

The provider received a sound before it sent `turn.start`, and a pause before it sent `turn.end`.
Its lag is unknown, but about the same both times. So the worker pairs a sound with a pause such
that both were sent equally long before their events arrived. Several pairs may fit: for example a
cough before the turn and a pause inside it. Then the lag of the previous turn decides. On a new
socket the first sound counts, which is the turn's unless there was noise.

Lag is not always steady: on a busy machine, or in a slow network, single events arrive late. So
three more rules apply. A turn was still open at every silence after which the provider resumed it.
Once a turn's words no longer change, the next silence ends it, whatever arrives or is sent later.
A sound after the silence that ended a turn begins the next turn. If no `turn.start` arrives in
time, the sound belongs to the same turn.

The worker examines 10 ms frames of the audio sent, oldest first. Filler is included, and counts as
silence. The silence level is relative, because lines have noise.
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from worker.core.levels import FRAME_MS

LOOKBACK_MS = 3_000
"""Maximum lookback in the audio sent. If the lag exceeds this minus the pause, the pause is not
found and the cut falls after words of the next turn."""

MIN_END_SILENCE_MS = 200
"""Minimum silence on which a provider ends a turn."""

MIN_SPEECH_MS = 30
"""Minimum sound that starts a turn; a shorter one is a click."""

ONSET_DETECTION_S = (0.03, 0.2)
"""Minimum and maximum sound that the provider needs before it sends `turn.start`."""

NOISE_CEILING = 2_000
"""Maximum loudness of noise, even if no frame is quieter: -24 dB."""

DEFAULT_LAG_S = 0.3
"""Lag assumed for a provider whose lag is unknown."""

LAG_CHANGE_WEIGHT = 0.5
"""Cost weight of a lag change from the previous turn. A lag change within a turn has weight 1: lag
changes within seconds more often than noise fits by chance."""

MIN_PAUSE_MS = 150
"""Minimum silence that a provider may take for the end of a turn; less is between words."""

_MIN_END_SILENCE = MIN_END_SILENCE_MS // FRAME_MS
_MIN_PAUSE = MIN_PAUSE_MS // FRAME_MS
_MIN_SPEECH = MIN_SPEECH_MS // FRAME_MS


class SilenceMap(NamedTuple):
    """The audio last sent, with one entry for each frame."""

    silent: list[bool]
    positions: list[int]
    """Session byte at which the frame begins."""


class SpeechStart(NamedTuple):
    """A sound that may have begun the turn."""

    sent: int
    """Byte of the socket at which it began."""
    least_lag_s: float
    """Minimum lag: time from sending the sound to the earliest possible arrival of `turn.start`."""
    most_lag_s: float
    """Maximum lag: time from sending the sound to handling `turn.start`, which may be delayed."""


class SilenceSpan(NamedTuple):
    """A silence that may have ended the turn."""

    sent: int
    """Byte of the socket at which it began."""
    least_lag_s: float
    """Minimum lag: time from sending the end of the pause to the arrival of `turn.end`."""
    most_lag_s: float
    """Maximum lag: the same, from the earliest point at which the pause is long enough."""
    until: int
    """Byte of the socket at which it ends."""
    middle: int
    """Session byte in its middle."""
    begun: bool = True
    """Whether it begins within the lookback, and not before."""
    followed_s: float = 0.0
    """Time from sending the next sound, not yet announced, to the arrival of `turn.end`; 0 if there
    is none, or if an unread message may announce it."""


def timeline(
    levels: Sequence[int], start: int, size: int, fillers: Sequence[tuple[int, int]]
) -> SilenceMap:
    """Return the frames of the audio last sent.

    `levels` is the loudness of the frames of `size` bytes from session byte `start` on. `fillers`
    are the (session byte, milliseconds) of silence sent between them.
    """
    filler = [0] * (sum(filler_ms for _, filler_ms in fillers) // FRAME_MS)
    # Filler may be the only silence, if the producer sends none.
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

    If none is long enough, return only the longest.
    """
    runs = silences(silent)
    return [run for run in runs if run[1] - run[0] >= _MIN_END_SILENCE] or sorted(
        runs, key=lambda run: run[0] - run[1]
    )[:1]


class Candidate(NamedTuple):
    """A sound and a pause that may delimit one turn."""

    onset: SpeechStart
    pause: SilenceSpan
    lag_s: float
    """Lag of the provider at the sound."""
    apart_s: float
    """Difference of the lag at the pause."""

    def cost_s(self, usual_s: float) -> float:
        """Return the cost of this pair at the usual lag, in seconds of unexplained lag."""
        unannounced_s = max(0.0, self.pause.followed_s - self.lag_s - ONSET_DETECTION_S[1])
        return self.apart_s + unannounced_s + LAG_CHANGE_WEIGHT * abs(self.lag_s - usual_s)


def best_candidate(
    starts: Sequence[SpeechStart], ends: Sequence[SilenceSpan], usual_lag_s: float | None
) -> Candidate | None:
    """Return the sound that began the turn and the pause that ended it, None without a pause.

    `usual_lag_s` is the lag at the sound chosen for the previous turn, None without one.
    """
    usual_s = DEFAULT_LAG_S if usual_lag_s is None else usual_lag_s
    if not starts:  # the turn began before the lookback
        starts = [SpeechStart(-1, usual_s, usual_s)]
    elif usual_lag_s is None:
        usual_s = min(max(usual_s, starts[0].least_lag_s), starts[0].most_lag_s)
    matches = [
        score(began, ended, usual_s)
        for began in starts
        for ended in ends
        if ended.sent > began.sent
    ]
    # Of equal candidates, as after a long delay, take the first: the provider received it first.
    return min(matches, key=lambda one: one.cost_s(usual_s), default=None)


def score(began: SpeechStart, ended: SilenceSpan, usual_s: float) -> Candidate:
    """Return the candidate of a sound and a pause, at a lag as close to `usual_s` as possible."""
    soonest_s, latest_s = ONSET_DETECTION_S
    least = max(began.least_lag_s, ended.least_lag_s + soonest_s)
    most = min(began.most_lag_s, ended.most_lag_s + latest_s)
    if least <= most:
        return Candidate(began, ended, min(max(usual_s, least), most), 0.0)
    lag_s = began.most_lag_s if least > began.most_lag_s else began.least_lag_s
    return Candidate(began, ended, lag_s, least - most)


def spans_after_last_word(ends: Sequence[SilenceSpan], last_change: int) -> Sequence[SilenceSpan]:
    """Return the pauses up to the first that lasted beyond byte `last_change` of the socket.

    By then the provider had sent all words of the turn. Audio after that pause contains none of
    them, however late `turn.end` arrives, and may belong to the next turn.
    """
    for count, pause in enumerate(ends, 1):
        if pause.until > last_change:
            return ends[:count]
    return ends


def turn_open_until(silent: Sequence[bool], open_at: int) -> int:
    """Return the frame up to which a turn that was just resumed was certainly open.

    The turn was open at frame `open_at`. Before the provider sent `turn.resume`, it received a
    silence and then more sound. The first long silence counts, or else the first silence.
    """
    over = [run for run in silences(silent) if run[0] > open_at and run[1] < len(silent)]
    long = (end for start, end in over if end - start >= _MIN_PAUSE)
    return next(long, over[0][1] if over else open_at)


def quiet_level(levels: Sequence[int]) -> int:
    """Return the maximum loudness of silence: halfway, in decibels, between noise and voice.

    A word may be short, so a few loud frames define the voice. A frame less than twice as loud as
    the noise is noise.
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
