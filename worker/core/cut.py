"""Where a turn's audio ends.

The service gives no timestamps, so when `turn.end` arrives it is ours to say which audio the turn
covers. The service heard everything up to some point before what was sent, and that lag varies. It
had heard a silence when it decided; so the cut belongs in the first silence, within the lag
tolerated, that is long enough to have ended the turn: a later one may already follow words of the
next turn.

With a lag beyond `LAG_MS` the right silence lies before the window, and the cut falls in a later
one: words of the next turn that were spoken meanwhile would be covered by this turn's end, which
matters only if the socket is lost before the next turn ends.
"""

from collections.abc import Sequence

from schemas.audio import Encoding
from worker.core.pcm import FRAME_MS, frame_bytes, loudness

LAG_MS = 1_300
"""How far the service may lag behind what was sent, in milliseconds of audio."""

PAUSE_MS = 200
"""No service ends a turn on less silence than this."""

LOOK_BACK_MS = LAG_MS + 1_200
"""How much audio before what was sent is worth looking at."""

_BRIDGE = 3  # frames of sound, a click, that do not break a silence


def choose_cut(quiet: Sequence[bool]) -> int:
    """Return the frame at which the turn's audio ends, 0 to `len(quiet)`.

    `quiet` says of each 10 ms frame up to what was sent when `turn.end` arrived, filler included
    and oldest first, whether it is silence.
    """
    runs = silences(quiet)
    earliest = len(quiet) - LAG_MS // FRAME_MS
    needed = PAUSE_MS // FRAME_MS
    reachable = [(start, end) for start, end in runs if end >= earliest]
    for start, end in reachable:
        if end - start >= needed:
            return (start + end) // 2
    if reachable:
        start, end = max(reachable, key=lambda run: run[1] - run[0])
        return (start + end) // 2
    return len(quiet)


def quiet_level(levels: Sequence[int]) -> int:
    """Loudness up to which a frame counts as silence: relative, for lines have noise."""
    ordered = sorted(levels)
    floor = ordered[len(ordered) // 20]
    voice = ordered[-1 - len(ordered) // 10]
    return max(floor + (voice - floor) // 6, 20)


def silences(quiet: Sequence[bool]) -> list[tuple[int, int]]:
    """Return (start, end) of every run of quiet frames, bridging clicks."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    for at, silent in enumerate([*quiet, False]):
        if silent and start is None:
            start = at
        elif not silent and start is not None:
            if runs and start - runs[-1][1] <= _BRIDGE and runs[-1][1] > runs[-1][0] + _BRIDGE:
                start = runs.pop()[0]
            runs.append((start, at))
            start = None
    return runs


def cut_position(
    audio: bytes,
    start: int,
    fillers: Sequence[tuple[int, int]],
    encoding: Encoding,
    sample_rate: int,
) -> int:
    """Return the session byte at which the turn's audio ends.

    `audio` is the last of what was sent, beginning at session byte `start` on a sample boundary;
    `fillers` are (session byte, milliseconds) of silence that was sent between.
    """
    size = frame_bytes(encoding, sample_rate)
    sound = loudness(audio, encoding, sample_rate)
    if not sound and not fillers:
        return start + len(audio)
    quiet = quiet_level(sound) if sound else 0
    silent = [level <= quiet for level in sound]
    positions = [start + at * size for at in range(len(sound))]
    for position, filler_ms in reversed(fillers):
        at = min(len(silent), max(0, (position - start) // size))
        frames = filler_ms // FRAME_MS
        silent[at:at] = [True] * frames
        positions[at:at] = [position] * frames
    at = choose_cut(silent)
    return positions[at] if at < len(positions) else start + len(audio)
