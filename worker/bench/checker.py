"""Checks a session's events against the words sent and the guarantees of turnbus. No I/O.

Recognizers are not deterministic, and a replay may merge two turns or change words. Words are
therefore counted over the texts of all `turn.end` events, in any turn.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Final, Literal, NamedTuple

import msgspec

from schemas.turns import (
    AudioGap,
    Event,
    EventBase,
    SessionEnded,
    SessionError,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
)
from worker.bench.words import compare
from worker.core.transcripts import is_blank, same_but_space
from worker.local.emulator.engines.script_text import DEFAULT_STYLE, STYLES, TextStyle
from worker.local.emulator.engines.script_words import WORD_MS, split_words, words_of

Rule = Literal[
    "lost",
    "repeated",
    "damaged",
    "moved",
    "run",
    "seq",
    "turn",
    "shrunk",
    "text",
    "reported",
    "end",
    "bus",
]
"""Kinds of violations: a word is lost, repeated, damaged or moved; a session has several runs; a
wrong `seq`; a wrong order of a turn's events; a text shrank, or is not the provider's; a wrong gap
or error event; a wrong end of the session; leftovers in Redis."""

WORD_RULES: Final = ("lost", "repeated", "damaged", "moved")

Found = tuple[Rule, str]

_TURN_EVENTS: Final = (TurnStart, TurnUpdate, TurnEagerEnd, TurnResume, TurnEnd)

_ROUNDED_MS: Final = 2.0
"""Maximum overlap of a gap and a word due to rounding gaps to whole milliseconds."""

_CLOCK_ERROR_S: Final = 0.5
"""Maximum difference between event times and entry ids, in seconds."""


class Span(NamedTuple):
    """A range of a session's audio, in milliseconds."""

    begin: float
    end: float

    def overlap(self, other: "Span") -> float:
        """Return the length of the overlap in milliseconds."""
        return max(0.0, min(self.end, other.end) - max(self.begin, other.begin))


class Appended(NamedTuple):
    """A chunk of a session's audio."""

    end: float
    """End of the chunk, in milliseconds of the session."""
    at_ms: int
    """Time at which Redis received the chunk, in Unix milliseconds."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Words and audio that a session's producer sent."""

    session: str
    words: int
    """Number of words sent: 0 to `words` - 1."""
    torn: frozenset[int] = frozenset()
    """Words whose audio the producer appended so late that the worker inserted silence: they may
    be damaged."""
    spans: tuple[Span, ...] = ()
    """Position of each word."""
    chunks: tuple[Appended, ...] = ()
    max_lag_s: float = 0.0
    """Age after which audio may be dropped; 0 for never."""
    style: TextStyle = STYLES[DEFAULT_STYLE]
    """Separators of the provider's transcripts."""


class Violation(msgspec.Struct, frozen=True):
    """A violated guarantee."""

    session: str
    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.session} {self.detail}"


def violations(expected: Expected, events: Sequence[Event]) -> list[Violation]:
    """Return every violation in a session that its producer ended."""
    found = [
        *_words(expected, events),
        *_numbers(events),
        *_turns(events),
        *_texts(expected.style, events),
        *_end(events),
        *_errors(expected, events),
    ]
    return [Violation(expected.session, rule, detail) for rule, detail in found]


def broken_words(found: Iterable[Violation]) -> str:
    """Return the number of violations by each rule of words."""
    rules = Counter(violation.rule for violation in found)
    return ", ".join(f"{rule} {rules[rule]}" for rule in WORD_RULES)


def ended_words(
    events: Sequence[Event], style: TextStyle = STYLES[DEFAULT_STYLE]
) -> list[int | str]:
    """Return the words of all ended turns; a damaged word is a string."""
    return [
        word
        for event in events
        if isinstance(event, TurnEnd)
        for word in words_of(event.transcript, spaced=style.spaced)
    ]


def gaps(events: Sequence[Event]) -> list[Span]:
    """Return the audio reported as dropped because of its age."""
    return [
        Span(event.audio_ms - event.missing_ms, event.audio_ms)
        for event in events
        if isinstance(event, AudioGap) and event.reason == "backlog"
    ]


def words_in_gaps(expected: Expected, events: Sequence[Event]) -> dict[int, float]:
    """Return the words that gaps cover or touch, with the maximum missing milliseconds of each."""
    # Gaps are rounded to whole milliseconds: one may begin 1 ms earlier, and end 1 ms later.
    dropped = [Span(gap.begin - 1, gap.end + 1) for gap in gaps(events)]
    missing = (sum(map(span.overlap, dropped)) for span in expected.spans)
    return {word: ms for word, ms in enumerate(missing) if ms > 0}


def _words(expected: Expected, events: Sequence[Event]) -> Iterator[Found]:
    differences = compare(expected.words, ended_words(events, expected.style))
    lost = set(differences.lost)
    missing = words_in_gaps(expected, events)
    surely = [sum(map(span.overlap, gaps(events))) for span in expected.spans]
    damaged = {text for text in differences.unknown if isinstance(text, str)}
    for word in range(expected.words):
        missing_ms = missing.get(word, 0.0)
        if word not in lost:
            if missing_ms > _ROUNDED_MS:
                detail = f"{missing_ms:g} ms of word {word} are reported missing"
                yield "reported", f"{detail}, but it is published"
            continue
        # A word with a small missing part is damaged, not lost.
        torn = bool(missing_ms) and not damaged.isdisjoint((f"!{word}", "!?"))
        if not (missing_ms > _ROUNDED_MS or torn or word in expected.torn):
            yield "lost", f"word {word}"
    for unknown in dict.fromkeys(differences.unknown):
        if isinstance(unknown, int):
            yield "damaged", f"word {unknown} was never sent"
    for word, count in Counter(differences.repeated).items():
        yield "repeated", f"word {word} {count + 1} times"
    edges = {word for word in missing if surely[word] < WORD_MS} | expected.torn
    excused = {f"!{word}" for word in edges} | ({"!?"} if edges else set())
    for text in sorted(damaged - excused):
        yield "damaged", text
    for before, after in differences.moved:
        yield "moved", f"word {after} after {before}"


def _numbers(events: Sequence[Event]) -> Iterator[Found]:
    runs = {event.run for event in events}
    if len(runs) != 1:
        yield "run", f"{len(runs)} runs: {', '.join(sorted(runs))}"
    seqs = [event.seq for event in events]
    for nth, seq in enumerate(seqs, 1):
        if seq != nth:
            yield "seq", f"{seq} in the place of {nth}"
            return


def _turns(events: Sequence[Event]) -> Iterator[Found]:
    turn_events = [event for event in events if isinstance(event, _TURN_EVENTS)]
    numbers = []
    for number, group in groupby(turn_events, attrgetter("turn")):
        numbers.append(number)
        yield from _turn(number, list(group))
    if numbers != list(range(len(numbers))):
        yield "turn", f"turns {numbers} instead of 0, 1, ..."


def _turn(number: int, events: Sequence[EventBase]) -> Iterator[Found]:
    first, *others = events
    if not isinstance(first, TurnStart):
        yield "turn", f"turn {number} begins with {_kind(first)}"
    if any(isinstance(event, TurnStart) for event in others):
        yield "turn", f"turn {number} starts twice"
    ends = [nth for nth, event in enumerate(events) if isinstance(event, TurnEnd)]
    if ends != [len(events) - 1]:
        yield "turn", f"turn {number}: {len(ends)} ends among {[_kind(event) for event in events]}"
    for before, after in pairwise(events):
        if isinstance(before, TurnEagerEnd) and not isinstance(after, TurnResume | TurnEnd):
            yield "turn", f"turn {number}: {_kind(after)} after an eager end"
        if isinstance(after, TurnResume) and not isinstance(before, TurnEagerEnd):
            yield "turn", f"turn {number}: resumed after {_kind(before)}"
    texts = [event for event in events if isinstance(event, TurnUpdate | TurnEagerEnd | TurnEnd)]
    for before, after in pairwise(texts):
        known, text = before.transcript, after.transcript
        if len(text) < len(known) and not _is_revision(after, known):
            yield "shrunk", f"turn {number}: {known!r} became {text!r}"
    updates = [event.transcript for event in events if isinstance(event, TurnUpdate)]
    for known, update in pairwise(updates):
        if known == update:
            yield "turn", f"turn {number}: an update without new text"


def _is_revision(event: TurnUpdate | TurnEagerEnd | TurnEnd, known: str) -> bool:
    """Return whether the last text of a turn has other words: Flux revises its texts."""
    last = isinstance(event, TurnEnd) and event.provider == "flux"
    return last and not same_but_space(event.transcript, known)


def _texts(style: TextStyle, events: Sequence[Event]) -> Iterator[Found]:
    """Yield texts that differ from the provider's, and updates that only add white space.

    The style is Cartesia's; Flux writes the words of a turn with single spaces between them. A turn
    that moves from Flux to Cartesia keeps the white space that Flux wrote.
    """
    known, styled = "", True
    for event in events:
        if isinstance(event, TurnStart):
            known, styled = "", True
        styled = styled and event.provider != "flux"
        text = getattr(event, "transcript", None)
        if text is None:
            continue
        if styled and not style.writes(text, split_words(text, spaced=style.spaced)):
            yield "text", f"{_kind(event)}: {text!r}"
        grows = isinstance(event, TurnUpdate) and text.startswith(known)
        if grows and is_blank(text[len(known) :]):
            yield "text", f"an update of white space: {known!r} became {text!r}"
        known = text


def _end(events: Sequence[Event]) -> Iterator[Found]:
    started = [nth for nth, event in enumerate(events) if isinstance(event, SessionStarted)]
    if started != [0]:
        yield "end", f"session.started at {started}"
    ended = [nth for nth, event in enumerate(events) if isinstance(event, SessionEnded)]
    if ended != [len(events) - 1]:
        yield "end", f"session.ended at {ended} of {len(events)} events"
    turns = sum(isinstance(event, TurnEnd) for event in events)
    for event in events:
        if isinstance(event, SessionEnded) and (event.reason, event.turns) != ("end", turns):
            yield "end", f"ended ({event.reason}) after {event.turns} turns; there were {turns}"
    connections = [event.connection for event in events]
    if connections != sorted(connections):
        yield "end", "connections are not counted up"


def _errors(expected: Expected, events: Sequence[Event]) -> Iterator[Found]:
    """Yield gaps of audio that is not old enough, and unexpected errors."""
    for event in events:
        if isinstance(event, AudioGap):
            age_s = _age_s(expected, event)
            if event.reason != "backlog" or not 0 < expected.max_lag_s < age_s + _CLOCK_ERROR_S:
                detail = f"a gap of {event.missing_ms} ms ({event.reason})"
                yield "reported", f"{detail} up to {event.audio_ms} ms, {age_s:.1f} s old"
        elif isinstance(event, SessionError) and event.code != "stt_unavailable":
            yield "reported", f"{event.code}: {event.message}"


def _age_s(expected: Expected, gap: AudioGap) -> float:
    """Return the age of the end of the missing audio when the gap was published."""
    last = bisect_left([chunk.end for chunk in expected.chunks], gap.audio_ms)
    if last == len(expected.chunks):
        return 0.0  # the gap exceeds the appended audio
    return gap.at - expected.chunks[last].at_ms / 1_000


def _kind(event: EventBase) -> str:
    return str(event.__struct_config__.tag)
