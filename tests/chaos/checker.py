"""The checker: what is promised of a session's events, held against what was said. Pure.

Recognizers are not deterministic and a replay may merge two turns or word one differently, so words
are counted over the texts of all `turn.end` events, whatever turn they are in.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
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
from worker.core.transcripts import is_blank
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
    "told",
    "end",
    "bus",
]
"""What can be broken: a word is lost, repeated, damaged or not in its place; a session's one run;
its `seq`; the order of a turn's events; a text that shrank, or is not the provider's; a gap or an
error that was told; the session's end; what is left on the bus."""

WORD_RULES: Final = ("lost", "repeated", "damaged", "moved")


_ROUNDED_MS: Final = 2.0
"""Part of a word that a gap may seem to cover because it is announced in whole milliseconds."""

_CLOCKS_S: Final = 0.5
"""What the time of an event may be off from the ids of entries."""


class Span(NamedTuple):
    """A stretch of a session's audio, in milliseconds."""

    begin: float
    end: float

    def overlap(self, other: "Span") -> float:
        """Return how many milliseconds both have."""
        return max(0.0, min(self.end, other.end) - max(self.begin, other.begin))


class Appended(NamedTuple):
    """A chunk of a session's audio."""

    end: float
    """Millisecond of the session at which it ends."""
    at_ms: int
    """When Redis took it, in Unix milliseconds."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's producer did."""

    session: str
    words: int
    """The words 0 to this less 1 were said."""
    torn: frozenset[int] = frozenset()
    """Words whose audio the producer appended so late that silence stood in: they read as damaged,
    and must not be lost otherwise."""
    spans: tuple[Span, ...] = ()
    """Where each word is."""
    chunks: tuple[Appended, ...] = ()
    max_lag_s: float = 0.0
    """Age of audio after which it may be dropped; 0 is never."""
    style: TextStyle = STYLES[DEFAULT_STYLE]
    """Separators of the provider's transcripts."""


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken."""

    session: str
    rule: Rule
    detail: str


def violations(said: Expected, events: Sequence[Event]) -> list[Violation]:
    """Return every broken promise about a session that was ended by its producer."""
    found = [
        *_words(said, events),
        *_numbers(events),
        *_turns(events),
        *_texts(said.style, events),
        *_end(events),
        *_told(said, events),
    ]
    return [Violation(said.session, rule, detail) for rule, detail in found]


def ended_words(
    events: Sequence[Event], style: TextStyle = STYLES[DEFAULT_STYLE]
) -> list[int | str]:
    """Return the words of all ended turns; a word that is no number is a damaged one."""
    return [
        word
        for event in events
        if isinstance(event, TurnEnd)
        for word in words_of(event.transcript, spaced=style.spaced)
    ]


Found = tuple[Rule, str]


def gaps(events: Sequence[Event]) -> list[Span]:
    """Return the audio that was announced as dropped for its age."""
    return [
        Span(event.audio_ms - event.missing_ms, event.audio_ms)
        for event in events
        if isinstance(event, AudioGap) and event.reason == "backlog"
    ]


def announced(said: Expected, events: Sequence[Event]) -> dict[int, float]:
    """Return the words that gaps cover or touch, and how many milliseconds of each at most."""
    # A gap is announced in whole milliseconds: it may begin up to one earlier, and end one later.
    dropped = [Span(gap.begin - 1, gap.end + 1) for gap in gaps(events)]
    missing = (sum(map(span.overlap, dropped)) for span in said.spans)
    return {word: ms for word, ms in enumerate(missing) if ms > 0}


def _words(said: Expected, events: Sequence[Event]) -> Iterator[Found]:
    heard = ended_words(events, said.style)
    times = Counter(word for word in heard if isinstance(word, int))
    missing = announced(said, events)
    surely = [sum(map(span.overlap, gaps(events))) for span in said.spans]
    edges = {word for word in missing if surely[word] < WORD_MS}
    damaged = {text for text in heard if isinstance(text, str)}
    for word in range(said.words):
        missing_ms = missing.get(word, 0.0)
        if times[word] and missing_ms > _ROUNDED_MS:
            yield "told", f"{missing_ms:g} ms of word {word} are announced, and it is published"
        # A word of which so little is missing reads as damaged.
        torn = bool(missing_ms) and not damaged.isdisjoint((f"!{word}", "!?"))
        covered = missing_ms > _ROUNDED_MS or torn or word in said.torn
        if not times[word] and not covered:
            yield "lost", f"word {word}"
    for word, count in times.items():
        if word >= said.words:
            yield "damaged", f"word {word} was never said"
        elif count > 1:
            yield "repeated", f"word {word} {count} times"
    edges |= said.torn
    excused = {f"!{word}" for word in edges} | ({"!?"} if edges else set())
    for text in sorted(damaged - excused):
        yield "damaged", text
    for before, after in pairwise(times):
        if after < before:
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
    about = [event for event in events if isinstance(event, _ABOUT_TURNS)]
    numbers = []
    for number, group in groupby(about, attrgetter("turn")):
        numbers.append(number)
        yield from _turn(number, list(group))
    if numbers != list(range(len(numbers))):
        yield "turn", f"turns {numbers} instead of 0, 1, ..."


_ABOUT_TURNS: Final = (TurnStart, TurnUpdate, TurnEagerEnd, TurnResume, TurnEnd)


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
    texts = [text for event in events if (text := getattr(event, "transcript", None)) is not None]
    for shorter, longer in pairwise(texts):
        if len(longer) < len(shorter):
            yield "shrunk", f"turn {number}: {shorter!r} became {longer!r}"
    updates = [event.transcript for event in events if isinstance(event, TurnUpdate)]
    for known, update in pairwise(updates):
        if known == update:
            yield "turn", f"turn {number}: an update without new text"


def _texts(style: TextStyle, events: Sequence[Event]) -> Iterator[Found]:
    """Yield texts that the provider did not write so, and updates of white space alone."""
    known = ""
    for event in events:
        if isinstance(event, TurnStart):
            known = ""
        text = getattr(event, "transcript", None)
        if text is None:
            continue
        if not style.writes(text, split_words(text, spaced=style.spaced)):
            yield "text", f"{_kind(event)}: {text!r}"
        goes_on = isinstance(event, TurnUpdate) and text.startswith(known)
        if goes_on and is_blank(text[len(known) :]):
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


def _told(said: Expected, events: Sequence[Event]) -> Iterator[Found]:
    """Yield what is announced as lost: nothing may be but audio that is old enough."""
    for event in events:
        if isinstance(event, AudioGap):
            age_s = _age_s(said, event)
            if event.reason != "backlog" or not 0 < said.max_lag_s < age_s + _CLOCKS_S:
                detail = f"a gap of {event.missing_ms} ms ({event.reason})"
                yield "told", f"{detail} up to {event.audio_ms} ms, {age_s:.1f} s old"
        elif isinstance(event, SessionError) and event.code != "stt_unavailable":
            yield "told", f"{event.code}: {event.message}"


def _age_s(said: Expected, gap: AudioGap) -> float:
    """Return how old the last of the announced audio was as it was announced."""
    last = bisect_left([chunk.end for chunk in said.chunks], gap.audio_ms)
    if last == len(said.chunks):
        return 0.0  # more is announced than was appended
    return gap.at - said.chunks[last].at_ms / 1_000


def _kind(event: EventBase) -> str:
    return str(event.__struct_config__.tag)
