"""The tally: what the bus said of a session, held against what was said in it. Pure."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    TurnEnd,
    TurnStart,
    TurnUpdate,
)
from worker.local.emulator.engines.script import words_of


class WordResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is right and wrong about a session; added up, about many."""

    words: int = 0
    """Said, and so expected."""
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    """Damaged, never said, or out of order."""
    seq_faults: int = 0
    """Events whose `seq` does not follow the one before."""
    faults: int = 0
    """Events that tell of an error or a gap."""
    unended: int = 0
    """Sessions that did not end."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(not value for name, value in self._counts.items() if name != "words")

    def __add__(self, other: "WordResult") -> "WordResult":
        """Return both together."""
        theirs = other._counts
        return WordResult(**{name: value + theirs[name] for name, value in self._counts.items()})

    @property
    def _counts(self) -> dict[str, int]:
        return msgspec.structs.asdict(self)


class WordChecker:
    """Hears the events of one session."""

    def __init__(self) -> None:
        self.updated_ms: Final[dict[int, int]] = {}
        """When the first `turn.update` with a word was appended, by the number of the word."""
        self.ended = False
        self._words: list[int | str] = []
        self._shown = 0  # words of the open turn
        self._seq = 0
        self._seq_faults = 0
        self._faults = 0

    def add(self, event: Event, appended_ms: int) -> None:
        """Take the next event, and when it was appended (Unix milliseconds)."""
        self._seq_faults += event.seq != self._seq + 1
        self._seq = event.seq
        match event:
            case TurnStart():
                self._shown = 0
            case TurnUpdate():
                words = words_of(event.transcript)
                for word in words[self._shown :]:
                    if isinstance(word, int):
                        self.updated_ms.setdefault(word, appended_ms)
                self._shown = len(words)
            case TurnEnd():
                self._words += words_of(event.transcript)
            case SessionError() | AudioGap():
                self._faults += 1
            case SessionEnded():
                self.ended = True
            case _:
                pass

    def verdict(self, said: int) -> WordResult:
        """Judge the session, in which the words 0 to `said` - 1 were said."""
        differences = compare(said, self._words)
        return WordResult(
            words=said,
            lost=len(differences.lost),
            repeated=len(differences.repeated),
            wrong=len(differences.wrong),
            seq_faults=self._seq_faults,
            faults=self._faults,
            unended=not self.ended,
        )

    def failures(self, said: int) -> str:
        """Say what is wrong about the session, in words; empty if nothing is."""
        parts = (
            str(compare(said, self._words)),
            f"seq faults {self._seq_faults}" if self._seq_faults else "",
            f"errors and gaps {self._faults}" if self._faults else "",
            "" if self.ended else "not ended",
        )
        return "; ".join(part for part in parts if part)


class Differences(NamedTuple):
    """How what was heard differs from what was said."""

    lost: list[int]
    repeated: list[int]
    wrong: list[int | str]

    def __str__(self) -> str:
        named = self._asdict().items()
        return "; ".join(f"{what} {' '.join(map(str, words))}" for what, words in named if words)


def compare(said: int, heard: Sequence[int | str]) -> Differences:
    """Hold what was heard against the words 0 to `said` - 1."""
    times = Counter(word for word in heard if isinstance(word, int) and word < said)
    strange = [word for word in heard if not isinstance(word, int) or word >= said]
    misplaced = [after for before, after in pairwise(times) if after < before]
    return Differences(
        lost=[word for word in range(said) if word not in times],
        repeated=[word for word, count in times.items() for _ in range(count - 1)],
        wrong=[*strange, *misplaced],
    )
