"""Sequence numbers: which entries of one producer are repeats, and how many are missing.

An entry is a repeat if its `seq` was accepted before, among the last entries. The audio of any
other entry is new, whatever its `seq`: a counter may wrap, restart or jump. If nothing explains the
number, the audio is accepted and the entry is doubtful.

Decisions depend only on the entries and on a state that is saved with the committed position. So
entries that are read again lead to the same decisions.
"""

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import msgspec

from schemas.audio import AudioEntry
from worker.core.records import Doubt, Sequence

REPEAT_REACH = 5_000
"""Maximum number of last entries whose numbers are remembered. A producer that resends its buffer
after a reconnect goes back by less; a counter that goes back by more is a new count."""

MAX_RUNS = 32
"""Maximum number of separate ranges of numbers that are remembered."""

MAX_HOLE = 30_000
"""Maximum entries missing in one hole: 10 minutes of 20 ms. After a larger step it is unknown how
much is missing."""

MAX_HOLES_IN_A_ROW = 8
"""Maximum entries in a row with a hole before each; after more, `seq` does not count entries."""

MAX_PRINTS = 4
"""Maximum fingerprints kept of the first entries of a count, without silent ones."""

NEAR_WRAP = 100
"""Maximum entries missing around a wrap."""

RINGS = (
    *((0, 2**7 - 1), (-(2**7), 2**7 - 1), (0, 2**8 - 1)),
    *((0, 2**15 - 1), (-(2**15), 2**15 - 1), (0, 2**16 - 1)),
    *((0, 2**31 - 1), (-(2**31), 2**31 - 1), (0, 2**32 - 1)),
)
"""Lowest and highest number of counters of 8, 16 and 32 bits, with and without a sign."""


class Taken(NamedTuple):
    """An entry whose audio is new."""

    sequence: Sequence
    """The count with this entry."""
    missing: int = 0
    """Number of entries before this one that were never appended."""
    doubt: Doubt | None = None


class Repeat(NamedTuple):
    """An entry whose `seq` was accepted before."""

    proven: bool
    """Whether its audio is known to be the same."""


def content(entry: AudioEntry) -> bytes:
    """Return what distinguishes an entry from another one with the same `seq`."""
    if entry.audio or entry.mark is None:
        return entry.audio
    return msgspec.json.encode(entry.mark)


def restored(last_seq: int) -> Sequence:
    """Return a count of which only the last `seq` is known."""
    return Sequence(last_seq, (last_seq - REPEAT_REACH + 1, last_seq))


def take(sequence: Sequence | None, seq: int, audio: bytes) -> Taken | Repeat:
    """Decide whether the next entry of the stream is new or a repeat."""
    if sequence is None:
        return Taken(_begun(seq, audio, shift=0, ring=None))
    if follows(sequence, 0, seq):
        return Taken(advanced(sequence, 1, crc32(audio)))
    number, ring = _unwrapped(sequence, seq, audio)
    if _was_taken(sequence, number):
        same = _same_audio(sequence, number, audio)
        if same is not False:
            return Repeat(proven=same is True)
        return Taken(_begun(number, audio, number - seq, ring), doubt=Doubt.REUSED)
    return _new(sequence, number, seq, audio, ring)


def follows(sequence: Sequence, after: int, seq: int) -> bool:
    """Return whether `seq` is the next one, `after` such entries; `take` decides if it is not.

    This is the usual case, for every chunk. `advanced` returns the count.
    """
    ring = sequence.ring
    return (
        seq + sequence.shift == sequence.last + after + 1
        and len(sequence.runs) == 2
        and sequence.runs[1] == sequence.last
        and (ring is None or ring[0] <= seq <= ring[1])
        and not _prints_on(sequence)
    )


def advanced(sequence: Sequence, entries: int, last_print: int) -> Sequence:
    """Return the count with `entries` more that follow; `last_print` is of the last one's audio."""
    number = sequence.last + entries
    low = max(sequence.runs[0], number - REPEAT_REACH + 1)
    shift, ring, printed_to = sequence.shift, sequence.ring, sequence.printed_to
    if printed_to is None or printed_to < low:
        return Sequence(number, (low, number), last_print, shift=shift, ring=ring)
    return Sequence(
        number,
        (low, number),
        last_print,
        sequence.prints,
        sequence.first,
        printed_to,
        shift,
        ring,
    )


def _new(
    sequence: Sequence, number: int, seq: int, audio: bytes, ring: tuple[int, int] | None
) -> Taken:
    """Accept an entry whose number was not accepted before."""
    below = max((high for _, high in sequence.ranges if high < number), default=None)
    missing, doubt = 0, None
    if number < sequence.last:
        doubt = Doubt.BACK
    elif below is not None and number - below - 1 > MAX_HOLE:
        doubt = Doubt.AHEAD
    elif below is not None:
        missing = number - below - 1
    holes = sequence.holes + 1 if missing else 0
    if holes > MAX_HOLES_IN_A_ROW:
        missing, doubt = 0, Doubt.STRIDE
    shift = number - seq
    taken = msgspec.structs.replace(
        sequence,
        last=number,
        runs=_with(sequence.ranges, number),
        last_print=crc32(audio),
        shift=shift,
        ring=ring,
        holes=holes,
    )
    wrapped = shift != sequence.shift
    anew = wrapped or doubt is Doubt.AHEAD or (doubt is Doubt.BACK and below != number - 1)
    if anew or (_prints_on(sequence) and sequence.printed_to == number - 1):
        taken = _printed(taken, audio, anew=anew)
    return Taken(taken, missing, doubt)


def _begun(number: int, audio: bytes, shift: int, ring: tuple[int, int] | None) -> Sequence:
    """Start a count that remembers no earlier number."""
    begun = Sequence(number, (number, number), crc32(audio), shift=shift, ring=ring)
    return _printed(begun, audio, anew=True)


def _unwrapped(sequence: Sequence, seq: int, audio: bytes) -> tuple[int, tuple[int, int] | None]:
    """Return the number of a `seq`, and the ring of the counter, None while unknown."""
    number = seq + sequence.shift
    ring = sequence.ring
    if ring is not None and ring[0] <= seq <= ring[1]:
        laps = ring[1] - ring[0] + 1
        near = min((number, number + laps, number - laps), key=lambda n: abs(n - sequence.last))
        return near, ring
    last = sequence.last_seq
    for low, high in RINGS:
        margin = NEAR_WRAP if high > 2**8 else 0
        if low <= seq <= low + margin and high - margin <= last <= high:
            known = _is_printed(sequence, number) and _was_taken(sequence, number)
            if known and _same_audio(sequence, number, audio) is not False:
                break  # the producer resends its buffer from the first entry on
            return number + high - low + 1, (low, high)
    return number, None


def _was_taken(sequence: Sequence, number: int) -> bool:
    return any(low <= number <= high for low, high in sequence.ranges)


def _same_audio(sequence: Sequence, number: int, audio: bytes) -> bool | None:
    """Return whether this is the audio accepted with the number; None if unknown."""
    if number == sequence.last:
        known = sequence.last_print
    elif _is_printed(sequence, number):
        known = sequence.prints.get(number)
        if known is None:
            return None if _is_silent(audio) else False
    else:
        return None
    if known is None:
        return None
    if crc32(audio) != known:
        return False
    return None if _is_silent(audio) else True


def _is_printed(sequence: Sequence, number: int) -> bool:
    return sequence.printed_to is not None and sequence.first <= number <= sequence.printed_to


def _prints_on(sequence: Sequence) -> bool:
    """Return whether the accepted entries are still the first ones, to be fingerprinted."""
    return sequence.printed_to == sequence.last and len(sequence.prints) < MAX_PRINTS


def _printed(sequence: Sequence, audio: bytes, *, anew: bool) -> Sequence:
    """Add the fingerprint of the last accepted entry, as the first one if `anew`."""
    number = sequence.last
    prints = {} if anew else sequence.prints
    if not _is_silent(audio):
        prints = {**prints, number: crc32(audio)}
    first = number if anew else sequence.first
    return msgspec.structs.replace(sequence, prints=prints, first=first, printed_to=number)


def _is_silent(audio: bytes) -> bool:
    return not audio or audio.count(audio[:1]) == len(audio)


def _with(ranges: Iterator[tuple[int, int]], number: int) -> tuple[int, ...]:
    """Return the ranges with `number` added, limited to `REPEAT_REACH`."""
    low = high = number
    others = []
    for each in ranges:
        if each[1] == number - 1:
            low = each[0]
        elif each[0] == number + 1:
            high = each[1]
        else:
            others.append(each)
    room = REPEAT_REACH
    kept: list[int] = []
    for each in ((low, high), *reversed(others[-MAX_RUNS + 1 :])):
        if room <= 0:
            break
        kept[:0] = (max(each[0], each[1] - room + 1), each[1])
        room -= each[1] - each[0] + 1
    return tuple(kept)
