"""Wording: texts of one turn that were transcribed apart, and how they go on from each other.

Recognizers are not deterministic. Consumers were told "twenty five thousand"; heard again, the
same audio may read "25,000 dollars", shorter and yet with a word more. So words are aligned with
words: like with like as far as they go, and what is left at the end is new.
"""

import re
from collections.abc import Sequence
from unicodedata import east_asian_width

REACH = 40
"""Words before the end of what is known that are looked at."""

NEWS = 10
"""Words that one message may bring at most and have their likeness judged; later ones are new."""

ASTRAY = 0.4
"""What each word of difference to where the audio's position puts the end of the known words
counts, where a word more or less counts 1: services do not lag equally from socket to socket."""

_WORD = re.compile(r"\S+")


def beyond(known: str, heard: str, caught_up: int) -> str:
    """Return the end of `heard`, with the space before it, that says more than `known` does.

    `heard` is a wording of all audio that `known` covers, and perhaps of more; `caught_up` says how
    many words of it the service had said about when the audio had come to the end of that.
    """
    words, told = list(_WORD.finditer(heard)), known.split()
    same = _same_ahead(told, words)
    # One message may say it all again, and the service nothing before.
    least = min(len(told), len(words)) - NEWS
    caught_up = min(max(caught_up, least, same), len(words))
    first = max(same, caught_up - REACH)
    end = first + _covering(
        told[same:] if first == same else told[-REACH:],
        [word.group() for word in words[first : caught_up + NEWS]],
        caught_up - first,
    )
    return heard[words[end - 1].end() if end else 0 :]


def join(before: str, after: str) -> str:
    """Put together two texts of one turn that were transcribed apart from each other."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return before + after
    if {east_asian_width(before[-1]), east_asian_width(after[0])} & {"W", "F"}:
        return before + after  # written without spaces
    return f"{before} {after}"


def same_words(text: str, other: str) -> bool:
    """Say whether two texts differ in case and punctuation at most."""
    if text.startswith(other):  # as a turn that grows does, with every update
        return not any(map(str.isalnum, text[len(other) :]))
    return _letters(text) == _letters(other)


def _same_ahead(told: Sequence[str], words: Sequence[re.Match[str]]) -> int:
    """Return how many words both begin with."""
    pairs = enumerate(zip(told, words, strict=False))
    unlike = (at for at, (one, other) in pairs if one != other.group())
    return next(unlike, min(len(told), len(words)))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _covering(known: Sequence[str], heard: Sequence[str], about: int) -> int:
    """Return how many words of `heard` say what `known` says, which are `about` so many."""
    # costs[n] is what it takes to make the first n words heard of the known words so far.
    costs = [float(count) for count in range(len(heard) + 1)]
    for word in known:
        diagonal, costs[0] = costs[0], costs[0] + 1
        for at, other in enumerate(heard, 1):
            cost = min(diagonal + _unlike(word, other), costs[at] + 1, costs[at - 1] + 1)
            diagonal, costs[at] = costs[at], cost
    return min(
        range(len(costs)), key=lambda count: (costs[count] + ASTRAY * abs(count - about), -count)
    )


def _unlike(word: str, other: str) -> float:
    """Say how different two words are: 0 if they are the same, 1 if they have nothing in common."""
    shorter, longer = sorted((word.casefold(), other.casefold()), key=len)
    if shorter in longer:
        shared = len(shorter)
    else:
        ahead = _alike(shorter, longer)
        shared = ahead + _alike(shorter[ahead:][::-1], longer[ahead:][::-1])
    return 1 - 2 * shared / (len(shorter) + len(longer))


def _alike(text: str, other: str) -> int:
    """Return how many letters both begin with."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(text), len(other)))
