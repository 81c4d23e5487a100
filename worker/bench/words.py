"""Compares the words published for a session with the words sent. No I/O."""

from collections import Counter
from collections.abc import Collection, Sequence
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
    """Word counts and errors of one session, or the sum over many."""

    words: int = 0
    """Number of words sent, and so expected."""
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    """Number of words that are damaged, were never sent, or are out of order."""
    seq_faults: int = 0
    """Number of events whose `seq` does not follow the previous one."""
    faults: int = 0
    """Number of error and gap events."""
    unended: int = 0
    """Number of sessions that did not end."""
    torn: int = 0
    """Number of words whose audio the producer interrupted, and that are therefore not errors if
    they are lost or damaged."""

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        counts = self._counts.items()
        return all(not value for name, value in counts if name not in {"words", "torn"})

    def __add__(self, other: "WordResult") -> "WordResult":
        """Return the sum of both."""
        theirs = other._counts
        return WordResult(**{name: value + theirs[name] for name, value in self._counts.items()})

    @property
    def _counts(self) -> dict[str, int]:
        return msgspec.structs.asdict(self)


class WordChecker:
    """Checks the events of one session."""

    def __init__(self) -> None:
        self.updated_ms: Final[dict[int, int]] = {}
        """Time of the first `turn.update` with a word, by the number of the word."""
        self.ended = False
        self._words: list[int | str] = []
        self._shown = 0  # words of the open turn
        self._seq = 0
        self._seq_faults = 0
        self._faults = 0

    def add(self, event: Event, appended_ms: int) -> None:
        """Add the next event, and the time it was appended (Unix milliseconds)."""
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

    def result(self, sent: int, torn: Collection[int] = ()) -> WordResult:
        """Return the result of the session, to which the words 0 to `sent` - 1 were sent.

        `torn` are the words that the producer interrupted for so long that the worker inserted
        silence: they may be lost or damaged.
        """
        return msgspec.structs.replace(
            compare(sent, self._words).without(torn).result(sent),
            seq_faults=self._seq_faults,
            faults=self._faults,
            unended=not self.ended,
            torn=len(torn),
        )

    def failures(self, sent: int, torn: Collection[int] = ()) -> str:
        """Describe the errors of the session; empty if there are none. `torn` as in `result`."""
        parts = (
            str(compare(sent, self._words).without(torn)),
            f"seq faults {self._seq_faults}" if self._seq_faults else "",
            f"errors and gaps {self._faults}" if self._faults else "",
            "" if self.ended else "not ended",
        )
        return "; ".join(part for part in parts if part)


class Differences(NamedTuple):
    """Differences between the received and the sent words."""

    lost: list[int]
    repeated: list[int]
    """Each word as often as it is received too often."""
    unknown: list[int | str]
    """Words that are damaged or were never sent."""
    moved: list[tuple[int, int]]
    """Words before and after each other, in the wrong order."""

    @property
    def wrong(self) -> list[int | str]:
        """Words that are damaged, were never sent, or are out of order."""
        return [*self.unknown, *(after for _, after in self.moved)]

    def without(self, torn: Collection[int]) -> "Differences":
        """Return the differences without the loss and the fragments of torn words."""
        if not torn:
            return self
        fragments = {"!?", *(f"!{word}" for word in torn)}
        return self._replace(
            lost=[word for word in self.lost if word not in torn],
            unknown=[word for word in self.unknown if word not in fragments],
        )

    def result(self, sent: int) -> WordResult:
        """Return the counts; the session ended without other errors."""
        return WordResult(
            words=sent,
            lost=len(self.lost),
            repeated=len(self.repeated),
            wrong=len(self.wrong),
        )

    def __str__(self) -> str:
        found: dict[str, Sequence[int | str]] = {
            "lost": self.lost,
            "repeated": self.repeated,
            "wrong": self.wrong,
        }
        return "; ".join(
            f"{name} {' '.join(map(str, words))}" for name, words in found.items() if words
        )


def compare(sent: int, received: Sequence[int | str]) -> Differences:
    """Compare the received words with the words 0 to `sent` - 1."""
    times = Counter(word for word in received if isinstance(word, int) and word < sent)
    return Differences(
        lost=[word for word in range(sent) if word not in times],
        repeated=[word for word, count in times.items() for _ in range(count - 1)],
        unknown=[word for word in received if not isinstance(word, int) or word >= sent],
        moved=[(before, after) for before, after in pairwise(times) if after < before],
    )
