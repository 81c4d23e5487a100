"""Wording: texts of one turn that were transcribed apart, and how they go on from each other.

Recognizers are not deterministic. Consumers were told "twenty five thousand"; heard again, the
same audio may read "25,000 dollars", shorter and yet with a word more. So words are aligned with
words: like with like as far as they go, and what is left at the end is new.
"""

import re
from collections.abc import Sequence

ALIGN_WINDOW_WORDS = 40
"""Words before the end of what is known that are looked at."""

MAX_NEW_WORDS = 10
"""Words that one message may bring at most and have their likeness judged; later ones are new."""

POSITION_WEIGHT = 0.4
"""What each word of difference to where the audio's position puts the end of the known words
counts, where a word more or less counts 1: services do not lag equally from socket to socket."""

_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
"""White space, and the spaces without a width that Unicode does not count as such."""

_UNSPACED = (
    "\u0e00-\u109f"  # Thai, Lao, Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f"  # CJK
    "\U00020000-\U0003ffff"
)
"""Scripts that put no space between words. Hangul does."""

_WORD = re.compile(f"[{_UNSPACED}]|[^{_SPACES}{_UNSPACED}]+")
"""A word; each character of a script without spaces counts as one."""

_SPACE_RUN = re.compile(f"[{_SPACES}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_CLOSING = re.compile(
    f"[^\\w{_SPACES}{_UNSPACED}(\\[{{\u00bf\u00a1]*[\u3001\u3002\u300d\u300f\u3011\uff01\uff09\uff0c\uff1a\uff1b\uff1f]*"
)
"""Punctuation that belongs to what is before it."""


def new_text(known: str, heard: str, caught_up: int) -> str:
    """Return the end of `heard`, with the space before it, that says more than `known` does.

    `heard` is a wording of all audio that `known` covers, and perhaps of more; `caught_up` says how
    many words of it the service had said about when the audio had come to the end of that.
    """
    words, told = list(_WORD.finditer(heard)), _WORD.findall(known)
    same = _same_ahead(told, words)
    # One message may say it all again, and the service nothing before.
    least = min(len(told), len(words)) - MAX_NEW_WORDS
    caught_up = min(max(caught_up, least, same), len(words))
    first = max(same, caught_up - ALIGN_WINDOW_WORDS)
    end = first + _aligned_words(
        told[same:] if first == same else told[-ALIGN_WINDOW_WORDS:],
        [word.group() for word in words[first : caught_up + MAX_NEW_WORDS]],
        caught_up - first,
    )
    news = heard[words[end - 1].end() if end else 0 :]
    return "" if is_blank(news) else news


def word_count(text: str) -> int:
    """Return how many words `beyond` counts in a text."""
    return len(_WORD.findall(text))


def is_blank(text: str) -> bool:
    """Return whether a text has no character but white space."""
    return not text.strip(_SPACES)


def leading_space(text: str) -> str:
    """Return the white space at the beginning of a text."""
    return text[: len(text) - len(text.lstrip(_SPACES))]


def without_leading_space(text: str) -> str:
    """Return a text without the white space at its beginning."""
    return text.lstrip(_SPACES)


def without_trailing_space(text: str) -> str:
    """Return a text without the white space at its end."""
    return text.rstrip(_SPACES)


def same_but_space(text: str, other: str) -> bool:
    """Return whether two texts differ in white space at most."""
    return text == other or _SPACE_RUN.sub("", text) == _SPACE_RUN.sub("", other)


def covers(text: str, known: str) -> bool:
    """Return whether a text can replace the text `known`: it is not shorter.

    It has no fewer characters, with white space and without.
    """
    if text.startswith(known):
        return True
    return len(text) >= len(known) and _ink(text) >= _ink(known)


def says_more(text: str, known: str) -> bool:
    """Return whether a text that covers `known` has more than white space to add to it."""
    if text.startswith(known):
        return not is_blank(text[len(known) :])
    return covers(text, known) and _ink(text) > _ink(known)


def parting(before: str, whole: str) -> str | None:
    """Return what the provider wrote between the text `before` and the next word in `whole`.

    `whole` begins with `before`. None if no word follows, or if what follows belongs to the last
    word of `before`.
    """
    rest = whole[len(before) :]
    if is_blank(rest):
        return None
    if before != without_trailing_space(before):
        return leading_space(rest)
    match = _CLOSING.match(rest)
    closed = match.end() if match else 0
    space = leading_space(rest[closed:])
    begin = closed + len(space)
    if begin == len(rest):
        return None
    if space or _IS_UNSPACED.match(before[-1:]) or _IS_UNSPACED.match(rest[begin]):
        return rest[:begin]
    return None


def join(before: str, after: str) -> str:
    """Put together two texts of one turn that were transcribed apart from each other.

    White space at the end of one or the beginning of the other parts them; of both, that of
    `before` stays. Where neither has any, the white space between the last words of `before` is
    repeated, or a space is added if it has none; but not next to a script without spaces.
    """
    if not before or not after:
        return before + after
    if before[-1] in _SPACES:
        return before + without_leading_space(after)
    if after[0] in _SPACES or _IS_UNSPACED.match(before[-1]) or _IS_UNSPACED.match(after[0]):
        return before + after
    spaces = _SPACE_RUN.findall(before) or [" "]
    return f"{before}{spaces[-1]}{after}"


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


def _ink(text: str) -> int:
    return len(_SPACE_RUN.sub("", text))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _aligned_words(known: Sequence[str], heard: Sequence[str], about: int) -> int:
    """Return how many words of `heard` say what `known` says, which are `about` so many."""
    # costs[n] is what it takes to make the first n words heard of the known words so far.
    costs = [float(count) for count in range(len(heard) + 1)]
    for word in known:
        diagonal, costs[0] = costs[0], costs[0] + 1
        for at, other in enumerate(heard, 1):
            cost = min(diagonal + _word_distance(word, other), costs[at] + 1, costs[at - 1] + 1)
            diagonal, costs[at] = costs[at], cost
    return min(
        range(len(costs)),
        key=lambda count: (costs[count] + POSITION_WEIGHT * abs(count - about), -count),
    )


def _word_distance(word: str, other: str) -> float:
    """Say how different two words are: 0 if they are the same, 1 if they have nothing in common."""
    shorter, longer = sorted((word.casefold(), other.casefold()), key=len)
    if shorter in longer:
        shared = len(shorter)
    else:
        ahead = _common_prefix(shorter, longer)
        shared = ahead + _common_prefix(shorter[ahead:][::-1], longer[ahead:][::-1])
    return 1 - 2 * shared / (len(shorter) + len(longer))


def _common_prefix(text: str, other: str) -> int:
    """Return how many letters both begin with."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(text), len(other)))
