"""Where a turn's audio ends: pure functions of what was sent and received on one socket.

The provider sends no timestamps, so the worker must find the audio that a `turn.end` covers. After
a lost socket, a cut too early repeats the turn's last words. A cut too late loses the first words
of the next turn. `docs/architecture.md` has a picture and the steps.

The provider received a sound before it sent `turn.start`, and a pause before it sent `turn.end`.
Its lag is unknown, but about the same both times. So `find_end` pairs an onset with a pause such
that both were sent equally long before their messages arrived. Several pairs may fit: for example a
cough before the turn and a pause inside it. Then the usual lag decides.

Lag is not always steady: on a busy machine, or in a slow network, single messages arrive late. So
four more rules apply. A turn was still open at every pause after which the provider resumed it. The
pause that ended it began before the eager end arrived, unless the provider resumed the turn. Once a
turn's words no longer change, the next pause ends it. A sound after that pause begins the next
turn, unless its `turn.start` is overdue: then it belongs to the same turn. If several pauses remain
and none is certain, `worker.core.turn_alignment` compares them by all messages of the turn.

| word | means |
|---|---|
| sent | a byte of the socket; filler counts |
| position | a byte of the session; filler does not count |
| frame | 10 ms of the audio sent |
| filler | silence that the worker sent for a producer that stopped inside a turn |
| silence | frames that are filler, or quiet for this line, because lines have noise |
| pause | a silence long enough to end a turn |
| onset | the first frame of a sound after a silence |
| lead-in | the silence before a turn's first onset |
| lag | time from sending a sound to the arrival of the message that it caused |
| usual lag | the median lag of a worker's last turns |
| lookback | how much of the audio sent is examined; committed audio never is |
| burst | messages that arrive almost together: they may have been delayed together |
| last change | how much was sent when the turn's words last changed |
| cut | the position at which a turn ends: the middle of a pause |
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf, isqrt
from statistics import median
from typing import NamedTuple

from worker.core.levels import FRAME_MS
from worker.core.send_log import SendLog, SendPosition
from worker.core.turn_alignment import (
    LATE_COST,
    ON_TIME_S,
    Message,
    Region,
    ending_costs,
    late_cost,
)

# -- Constants. A number without an origin is a choice; `tests/simulation` measures what it does.

LOOKBACK_MS = 3_000
"""Maximum lookback. If the lag exceeds this minus the pause, the pause is not found, and the cut
falls after words of the next turn."""
SHORT_LOOKBACK_MS = 1_500
"""First lookback: long enough for most turns, if the lag is as usual."""
KEPT_LEAD_IN_MS = 300
"""Silence kept uncommitted before an onset, for a replay to a new socket."""
ONSET_MARGIN_MS = 1_500
"""Minimum audio kept uncommitted before an answered ping. A turn start on its way may cover it: the
margin is the lag plus the sound that the provider needs to detect a turn."""

MIN_SPEECH_MS = 30
"""Minimum sound that starts a turn; a shorter one is a click."""
MIN_END_PAUSE_MS = 200
"""Minimum silence on which a provider ends a turn."""
MIN_RESUMED_PAUSE_MS = 150
"""Minimum silence after which a provider resumes a turn; a shorter one is between words."""
MIN_ONSET_DETECTION_S = 0.03
"""Minimum sound that the provider needs before it sends `turn.start`."""
MAX_ONSET_DETECTION_S = 0.2
"""Maximum sound that the provider needs before it sends `turn.start`."""

NOISE_CEILING = 2_000
"""Maximum level of noise, even if no frame is quieter: -24 dB of `FULL_SCALE`."""
QUIET_FLOOR = 20
"""Level up to which a frame is silent on any line."""
NOISE_FRAMES = 20
"""One of so many frames is quieter than the noise of the line."""

DEFAULT_LAG_S = 0.3
"""Lag assumed for a provider whose lag is unknown."""
LAG_TOLERANCE_S = 0.1
"""Maximum difference of a steady lag from turn to turn."""
LAG_CHANGE_WEIGHT = 0.5
"""Cost of a second of difference to the usual lag. A second of difference between onset and pause
costs 1: lag changes within seconds more often than noise fits by chance."""
MAX_MISFIT_S = 0.1
"""Maximum change of lag since the turn began for which a pause inside the turn is certain."""
MAX_PLAUSIBLE_LAG_S = 1.5
"""Maximum lag considered. A pause is certain only if no other pause fits any lag up to this."""
SLOW_COST = 0.5
"""Cost of a slow socket, in addition to that of a late message: one late message is likelier."""
MIN_LAG_TURNS = 5
"""Minimum number of turns before the usual lag is known."""
LAG_WINDOW_TURNS = 50
"""Maximum number of turns in the usual lag; a changed lag shows after half of them."""

BURST_GAP_S = 0.05
"""Messages that arrive within this time of each other may have been delayed together."""
MIN_BURST = 2
"""Minimum number of messages in a burst."""
CERTAIN_BURST = 3
"""Minimum number of messages in a burst that was certainly delayed: fewer may come from one long
chunk."""

_MIN_SPEECH = MIN_SPEECH_MS // FRAME_MS
_MIN_ONSET_DETECTION = round(MIN_ONSET_DETECTION_S * 1_000) // FRAME_MS
_MIN_END_PAUSE = MIN_END_PAUSE_MS // FRAME_MS
_MIN_RESUMED_PAUSE = MIN_RESUMED_PAUSE_MS // FRAME_MS
_SILENCE = re.compile(rb"\x01+(?:\x00{1,%d}\x01+)*" % (_MIN_SPEECH - 1))

# -- What the functions decide from.


class Burst(NamedTuple):
    """The messages that arrived with one, itself included."""

    after: float
    """Arrival time of the last message before them."""
    messages: int
    waiting: int
    """How many of them are not handled yet."""

    @property
    def is_delayed(self) -> bool:
        """Whether the messages may have been delayed together, since `after` at the earliest."""
        return self.messages >= MIN_BURST


class Arrival(NamedTuple):
    """The arrival of a message."""

    sent: SendPosition
    """How much was sent by then, and the time."""
    earliest_at: float
    """Earliest time at which it may have arrived: before `sent.at` if the process stood still."""
    burst: Burst


class SentAudio(NamedTuple):
    """The frames sent before an arrival, as far as they are not committed and in the lookback."""

    silent: bytes
    """1 for each silent frame, 0 for each loud one."""
    positions: Sequence[int]
    """Session byte at which each frame begins."""
    first: int
    """Byte of the socket at which the first frame begins."""
    frame_bytes: int
    quiet: int
    """Level up to which a frame is silent."""
    log: SendLog
    """When each byte of the socket was sent; it is only read."""

    def byte_of(self, frame: int) -> int:
        """Return the byte of the socket at which a frame begins."""
        return self.first + frame * self.frame_bytes

    def sent_at(self, frame: int) -> float | None:
        """Return when a frame was sent; None if it is no longer known."""
        return self.log.sent_at(self.byte_of(frame))

    def after(self, position: int) -> "SentAudio":
        """Return the frames from a session byte on."""
        frame = bisect_left(self.positions, position)
        return self._replace(
            silent=self.silent[frame:], positions=self.positions[frame:], first=self.byte_of(frame)
        )


class Onset(NamedTuple):
    """An onset that may have begun a turn."""

    sent: int
    """Byte of the socket at which it begins."""
    sent_at: float
    detectable_at: float
    """When so much of it was sent that the provider could detect it: with its beginning, or with
    the next chunk if the first one ends shortly after it."""


class History(NamedTuple):
    """What was sent and received on one socket, up to the arrival of a message about a turn."""

    arrival: Arrival
    audio: SentAudio
    start: Arrival
    """Arrival of the turn's `turn.start`; of the socket's beginning if there was none."""
    onsets: Sequence[Onset]
    """Onsets that may have begun the turn."""
    last_change: int
    """Byte of the socket sent when the turn's words last changed."""
    open_until: int
    """Byte of the socket before which the turn was certainly open."""
    eager_end_at: int | None
    """Byte of the socket sent when the turn's eager end arrived; None without one, or if the turn
    resumed."""
    usual_lag_s: float | None
    """The usual lag; None while unknown."""
    previous_lag_s: float | None
    """The lag of the previous turn on this socket; None without one."""
    messages: Sequence[Message] = ()
    """Messages about the turn, if they are to be aligned with the audio."""


# -- What they decide.


class Start(NamedTuple):
    """What may have caused a `turn.start`."""

    onsets: Sequence[Onset]
    lead_in_until: int
    """Session byte before which the turn's sound does not begin; 0 if unknown."""
    lookback_suffices: bool
    """Whether the only onset fits the usual lag. If not, an onset may be before the lookback."""


class Boundary(NamedTuple):
    """The end of a turn."""

    position: int
    """The cut."""
    speech_ended_at: float | None
    """When the last sound of the turn was sent; None if unknown."""
    lag_s: float | None
    """Lag of the provider at the turn's onset; None if unknown."""
    lookback_suffices: bool
    """Whether the pair fits the usual lag. If not, earlier audio could match better."""


def find_start(history: History) -> Start:
    """Find the onsets that may have caused the `turn.start` that arrived."""
    arrival, audio, usual_s = history.arrival, history.audio, history.usual_lag_s
    frames = onset_frames(audio.silent)
    onsets = [onset for frame in frames if (onset := _onset(audio, frame)) is not None]
    if usual_s is None or not onsets:
        return Start(onsets, 0, lookback_suffices=False)
    lag_s = arrival.sent.at - onsets[0].sent_at
    lookback_suffices = (
        len(onsets) == 1
        and audio.silent[0] == 1
        and abs(lag_s - usual_s) <= LAG_TOLERANCE_S
        and not arrival.burst.is_delayed
    )
    lead_in = frames[0] - KEPT_LEAD_IN_MS // FRAME_MS
    if lag_s < usual_s - LAG_TOLERANCE_S or lead_in <= 0:
        return Start(onsets, 0, lookback_suffices)  # the turn may have begun before the lookback
    return Start(onsets, audio.positions[lead_in], lookback_suffices)


def _onset(audio: SentAudio, frame: int) -> Onset | None:
    """Return the onset at a frame; None if it is no longer known when it was sent."""
    sent_at, detectable_at = audio.sent_at(frame), audio.sent_at(frame + _MIN_ONSET_DETECTION)
    if sent_at is None or detectable_at is None:
        return None
    return Onset(audio.byte_of(frame), sent_at, detectable_at)


def find_resume(history: History) -> int:
    """Return the byte of the socket before which a turn was open whose `turn.resume` arrived.

    Before it, the provider received a silence, and then more sound.
    """
    audio, burst, open_until = history.audio, history.arrival.burst, history.open_until
    received = max(open_until, _received_by(history, burst.after, LAG_TOLERANCE_S))
    if burst.is_delayed and audio.first - received >= _MIN_END_PAUSE * audio.frame_bytes:
        return open_until  # after so long a delay the silence may lie before the lookback
    open_at = max(-1, (open_until - audio.first) // audio.frame_bytes)  # -1: before the lookback
    return max(open_until, audio.byte_of(resumed_frame(audio.silent, open_at)))


def find_end(history: History, *, begins: bool = False) -> Boundary:
    """Find the end of the turn whose `turn.end` arrived.

    `begins` is whether a `turn.start` arrived with it: then that turn's sound follows the pause.
    """
    pauses = _pauses(history)
    if begins:
        received = history.arrival.sent.socket_bytes
        if history.usual_lag_s is not None:  # a provider may be faster than the default
            received = _received_by(history, history.arrival.sent.at, -MAX_ONSET_DETECTION_S)
        pauses = [pause for pause in pauses if pause.until < received] or pauses
    if history.messages and len(pauses) > 1:
        pauses = _best_aligned(history, pauses, begins=begins)
    pair = _best_pair(history, pauses)
    if pair is not None:
        pause, lag_s, lookback_suffices = pair.pause, pair.lag_s, _lookback_suffices(history, pair)
    elif pauses:
        pause, lag_s, lookback_suffices = pauses[-1], None, False
    else:
        return Boundary(history.arrival.sent.session_bytes, None, None, lookback_suffices=False)
    return Boundary(pause.middle, history.audio.log.sent_at(pause.sent), lag_s, lookback_suffices)


def find_pause(history: History) -> int | None:
    """Return a session byte inside the pause that caused the `turn.eager_end` that arrived.

    Returns None if uncertain.
    """
    pauses = _pauses(history, _MIN_RESUMED_PAUSE)  # a shorter one than ends a turn may propose it
    pair = _best_pair(history, pauses)
    if pair is None or not history.onsets or history.usual_lag_s is None:
        return None
    possible = [
        pause
        for pause in pauses
        if pause.least_lag_s <= MAX_PLAUSIBLE_LAG_S and pause.most_lag_s >= 0
    ]
    is_certain = pair.misfit_s <= MAX_MISFIT_S and possible == [pair.pause]
    return pair.pause.middle if is_certain else None


class ProviderLag:
    """The usual lag, measured by one worker over all its sessions.

    It is a median, because some turns are delayed or measured wrongly.
    """

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=LAG_WINDOW_TURNS)
        self.seconds: float | None = None
        """The usual lag; None while unknown."""

    def seed(self, seconds: float | None) -> None:
        """Use another worker's value until this worker has its own."""
        if self.seconds is None:
            self.seconds = seconds

    def observe(self, lag_s: float) -> None:
        """Add the lag of a turn."""
        self._lags_s.append(lag_s)
        if len(self._lags_s) >= MIN_LAG_TURNS:
            self.seconds = median(self._lags_s)


# -- Silence.


def sent_audio(
    levels: Sequence[int],
    position: int,
    frame_bytes: int,
    fillers: Sequence[tuple[int, int]],
    until: int,
    log: SendLog,
    least_quiet: int = 0,
) -> SentAudio:
    """Return the frames sent up to byte `until` of the socket.

    `levels` is the loudness of the session's frames from byte `position` on. `fillers` are the
    (session byte, milliseconds) of filler sent between them. Frames up to the level `least_quiet`
    are silent in any case.
    """
    # Filler may be the only silence, if the producer sends none.
    filler = [0] * (sum(filler_ms for _, filler_ms in fillers) // FRAME_MS)
    quiet = quiet_level([*levels, *filler] if filler else levels) if levels else 0
    quiet = max(quiet, least_quiet)
    silent = bytearray(map(quiet.__ge__, levels))
    positions: Sequence[int] = range(position, position + len(levels) * frame_bytes, frame_bytes)
    if fillers:
        positions = [*positions]
        for filler_position, filler_ms in reversed(fillers):
            frame = min(len(silent), max(0, -(-(filler_position - position) // frame_bytes)))
            count = filler_ms // FRAME_MS
            silent[frame:frame] = b"\x01" * count
            positions[frame:frame] = [filler_position] * count
    first = until - len(silent) * frame_bytes
    return SentAudio(bytes(silent), positions, first, frame_bytes, quiet, log)


def quiet_level(levels: Sequence[int]) -> int:
    """Return the maximum loudness of silence: halfway, in decibels, between noise and voice.

    A word may be short, so a few loud frames define the voice. A frame less than twice as loud as
    the noise is noise.
    """
    ordered = sorted(levels)
    noise, voice = ordered[len(ordered) // NOISE_FRAMES], ordered[-_MIN_SPEECH:][0]
    return min(max(2 * noise, isqrt(noise * voice), QUIET_FLOOR), NOISE_CEILING)


def silences(silent: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of every run of silent frames; clicks do not break one."""
    return [run.span() for run in _SILENCE.finditer(silent)]


def onset_frames(silent: bytes) -> list[int]:
    """Return the first frame of every sound."""
    ends = [end for _, end in silences(silent) if end < len(silent)]
    return ends if not silent or silent[0] else [0, *ends]


def pause_frames(silent: bytes, least: int = _MIN_END_PAUSE) -> list[tuple[int, int]]:
    """Return (start, end) of every pause of `least` frames; without one, of the longest silence."""
    runs = silences(silent)
    return [run for run in runs if run[1] - run[0] >= least] or sorted(
        runs, key=lambda run: run[0] - run[1]
    )[:1]


def resumed_frame(silent: bytes, open_at: int) -> int:
    """Return the frame up to which a turn that was just resumed was certainly open.

    The turn was open at frame `open_at`. Before the provider sent `turn.resume`, it received a
    silence and then more sound. The first long silence counts, or else the first silence.
    """
    over = [run for run in silences(silent) if run[0] > open_at and run[1] < len(silent)]
    long = (end for start, end in over if end - start >= _MIN_RESUMED_PAUSE)
    return next(long, over[0][1] if over else open_at)


# -- Pairs of an onset and a pause.


class _Pause(NamedTuple):
    """A pause that may have ended the turn."""

    sent: int
    """Byte of the socket at which it begins."""
    least_lag_s: float
    """Minimum lag: time from sending the end of the pause to the arrival of the message."""
    most_lag_s: float
    """Maximum lag: the same, from the earliest point at which the pause is long enough."""
    until: int
    """Byte of the socket at which it ends."""
    middle: int
    """Session byte in its middle."""
    followed_s: float
    """Time from sending the next sound, not yet announced, to the arrival of the message; 0 if
    there is none, or if an unread message may announce it."""


class _OnsetLag(NamedTuple):
    """Lag of the provider at the turn's start, if an onset caused it."""

    sent: int
    """Byte of the socket at which the onset begins."""
    least_s: float
    most_s: float
    detection_s: float
    """Minimum part of it that the provider needs to detect the onset."""


class _Pair(NamedTuple):
    """An onset and a pause that may delimit one turn."""

    pause: _Pause
    lag_s: float
    """Lag of the provider at the onset."""
    misfit_s: float
    """Difference of the lag at the pause."""

    def cost_s(self, usual_s: float) -> float:
        """Return the cost of this pair at the usual lag, in seconds of unexplained lag."""
        unannounced_s = max(0.0, self.pause.followed_s - self.lag_s - MAX_ONSET_DETECTION_S)
        return self.misfit_s + unannounced_s + LAG_CHANGE_WEIGHT * abs(self.lag_s - usual_s)


def _pauses(history: History, least: int = _MIN_END_PAUSE) -> Sequence[_Pause]:
    """Return the pauses that may have caused the message that arrived, in the order sent."""
    arrival, audio = history.arrival, history.audio
    earliest_at = arrival.earliest_at
    if arrival.burst.is_delayed:
        earliest_at = min(earliest_at, arrival.burst.after)
    pauses = []
    for start, end in pause_frames(audio.silent, least):
        decided_at = audio.sent_at(min(start + least, end))
        over_at = audio.sent_at(end)
        if decided_at is None or over_at is None:
            continue
        lasts = end == len(audio.silent)
        if lasts:
            over_at = arrival.sent.at
        pauses.append(
            _Pause(
                audio.byte_of(start),
                least_lag_s=earliest_at - over_at,
                most_lag_s=arrival.sent.at - decided_at,
                until=audio.byte_of(end),
                middle=audio.positions[(start + end) // 2],
                followed_s=0.0 if lasts or arrival.burst.waiting else arrival.sent.at - over_at,
            )
        )
        if audio.byte_of(end) > history.last_change:
            # The provider had been sent all words of the turn. Audio after this pause contains none
            # of them, however late the message arrives, and may belong to the next turn.
            break
    # Unless none is left: a provider may resume a turn, or propose its end, without a silence.
    pauses = [pause for pause in pauses if pause.sent >= history.open_until] or pauses
    proposed_at = history.eager_end_at
    if proposed_at is None:
        return pauses
    proposed = [pause for pause in pauses if history.open_until <= pause.sent < proposed_at]
    if history.usual_lag_s is None:  # no lag rules out a pause that was too short by then
        proposed = [pause for pause in proposed if _is_proposable(history, pause)] or proposed
    return proposed or pauses


def _is_proposable(history: History, pause: _Pause) -> bool:
    """Return whether a pause was long enough when the eager end arrived; True without one."""
    needed = _MIN_RESUMED_PAUSE * history.audio.frame_bytes
    return history.eager_end_at is None or pause.sent + needed <= history.eager_end_at


def _best_pair(history: History, pauses: Sequence[_Pause]) -> _Pair | None:
    """Return the onset that began the turn with the pause that ended it; None without a pair."""
    start = history.start
    # While the lag is unknown, a small burst is not enough evidence of a delay.
    needed = CERTAIN_BURST if history.usual_lag_s is None else MIN_BURST
    earliest_at = start.burst.after if start.burst.messages >= needed else start.earliest_at
    lags = [_onset_lag(history, onset, earliest_at) for onset in history.onsets]
    known_s = history.previous_lag_s if history.usual_lag_s is None else history.usual_lag_s
    usual_s = DEFAULT_LAG_S if known_s is None else known_s
    if not lags:  # the turn began before the lookback
        lags = [_OnsetLag(-1, usual_s, usual_s, MIN_ONSET_DETECTION_S)]
    elif known_s is None:  # the first onset is the turn's, unless it is noise
        usual_s = min(max(usual_s, lags[0].least_s), lags[0].most_s)
    pairs = [
        _pair(lag, pause, usual_s) for lag in lags for pause in pauses if pause.sent > lag.sent
    ]
    # Of equal pairs, as after a long delay, take the first: the provider received it first.
    return min(pairs, key=lambda pair: pair.cost_s(usual_s), default=None)


def _onset_lag(history: History, onset: Onset, earliest_at: float) -> _OnsetLag:
    """Return the lag of the turn's start if this onset caused it, and the start left so early.

    The usual lag is a median over onsets of all kinds. While it is unknown, a single lag must be
    exact: an onset at the end of a chunk is detected in the next one.
    """
    sent_at, detection_s = onset.sent_at, MIN_ONSET_DETECTION_S
    if history.usual_lag_s is None:
        sent_at = max(sent_at, onset.detectable_at - MIN_ONSET_DETECTION_S)
        detection_s = onset.detectable_at - sent_at
    arrived_at = history.start.sent.at
    return _OnsetLag(onset.sent, max(0.0, earliest_at - sent_at), arrived_at - sent_at, detection_s)


def _pair(lag: _OnsetLag, pause: _Pause, usual_s: float) -> _Pair:
    """Pair a pause with an onset that has this lag.

    The pair's lag is as close to the usual lag as possible.
    """
    least_s, most_s = lag.least_s, lag.most_s
    low_s = max(least_s, pause.least_lag_s + lag.detection_s)
    high_s = min(most_s, pause.most_lag_s + MAX_ONSET_DETECTION_S)
    if low_s <= high_s:
        return _Pair(pause, min(max(usual_s, low_s), high_s), 0.0)
    return _Pair(pause, most_s if low_s > most_s else least_s, low_s - high_s)


# -- The alignment of the turn's messages.


def _best_aligned(history: History, pauses: Sequence[_Pause], *, begins: bool) -> Sequence[_Pause]:
    """Return the pauses that the turn's messages fit best; all of them if that is unknown."""
    waiting = history.arrival.burst.waiting
    if waiting and not begins:
        return pauses
    regions, pause_at = _regions(history)
    following = max(1, waiting) if begins else 0
    messages = history.messages
    if history.usual_lag_s is None and history.start.burst.messages >= CERTAIN_BURST:
        messages = [_delayed_start(message, history.start) for message in messages]
    costs = [inf] * len(regions)
    for lag_s, slower in _possible_lags(history):
        found = ending_costs(regions, messages, lag_s, following)
        costs = [min(cost, other + slower) for cost, other in zip(costs, found, strict=True)]
    cost_at = {sent: costs[region] for sent, region in pause_at.items()}
    best = min(pauses, key=lambda pause: cost_at[pause.sent])
    if cost_at[best.sent] == inf:
        return pauses
    if history.usual_lag_s is not None:
        return [best]
    # While the lag is unknown, a pause must need one more late message to be excluded.
    return [pause for pause in pauses if cost_at[pause.sent] < cost_at[best.sent] + LATE_COST]


def _delayed_start(message: Message, start: Arrival) -> Message:
    """Return a message; if it is the delayed start, with the earliest time of its burst."""
    is_start = message.at == start.sent.at and not message.together
    return message._replace(earliest_at=start.burst.after) if is_start else message


def _possible_lags(history: History) -> Iterator[tuple[float, float]]:
    """Yield lags that the provider may have on this socket, and the cost of each."""
    usual_s = history.usual_lag_s
    start_lags_s = [history.start.sent.at - onset.sent_at for onset in history.onsets]
    if usual_s is not None:
        yield usual_s, 0.0
        for lag_s in start_lags_s:
            # The provider may be slow on this socket. Then all messages are as late as the start.
            if lag_s > usual_s + ON_TIME_S:
                yield lag_s, late_cost(lag_s - usual_s) + SLOW_COST
    # The lag of one previous turn may be measured wrongly, and would exclude the right pause.
    elif start_lags_s and history.previous_lag_s is None:
        # Only the start may be late, so the lag may be anything up to its own.
        most_s = min(max(start_lags_s), MAX_PLAUSIBLE_LAG_S)
        for step in range(int(most_s / ON_TIME_S) + 1):
            yield most_s - step * ON_TIME_S, 0.0


def _regions(history: History) -> tuple[list[Region], dict[int, int]]:
    """Return the regions of the audio sent, and in which of them each pause is.

    A pause is known by the byte of the socket at which it begins.
    """
    audio, over_at = history.audio, history.arrival.sent.at

    def sent_at(frame: int) -> float:
        if frame >= len(audio.silent):
            return over_at
        at = audio.sent_at(frame)
        return -inf if at is None else at

    # The first one is everything before this audio.
    regions, pause_at = [Region(-inf, inf, inf, sent_at(0), 0)], dict[int, int]()
    begin = sounds = 0
    for start, end in silences(audio.silent):
        if end - start < _MIN_RESUMED_PAUSE:
            continue
        pause_at[audio.byte_of(start)] = len(regions)
        proposable_at = sent_at(start + _MIN_RESUMED_PAUSE - 1)
        ends = end - start >= _MIN_END_PAUSE
        endable_at = sent_at(start + _MIN_END_PAUSE - 1) if ends else inf
        regions.append(Region(sent_at(begin), proposable_at, endable_at, sent_at(end), sounds))
        begin = end
        sounds += start > 0
    if begin < len(audio.silent):
        regions.append(Region(sent_at(begin), inf, inf, over_at, sounds))
    return regions, pause_at


def _lookback_suffices(history: History, pair: _Pair) -> bool:
    """Return whether no earlier audio could match better."""
    audio, pause, usual_s = history.audio, pair.pause, history.usual_lag_s
    return (
        usual_s is not None
        and _is_proposable(history, pause)
        and not history.arrival.burst.is_delayed
        and not pair.misfit_s
        and abs(pair.lag_s - usual_s) <= LAG_TOLERANCE_S
        and pause.most_lag_s >= usual_s - LAG_TOLERANCE_S
        and pause.sent > audio.first
        and pause.until - pause.sent >= _MIN_END_PAUSE * audio.frame_bytes
    )


def _received_by(history: History, at: float, more_s: float) -> int:
    """Return the byte of the socket that the provider had received, as reported by `at`.

    `more_s` is added to the usual lag.
    """
    lag_s = DEFAULT_LAG_S if history.usual_lag_s is None else history.usual_lag_s
    return history.audio.log.moment(at - max(0.0, lag_s + more_s)).socket_bytes
