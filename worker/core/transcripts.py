"""Transcripts: joins and compares texts of one turn, and limits how often they are published.

Recognizers are not deterministic. Consumers may have received "twenty five thousand", and a replay
of the same audio may give "25,000 dollars": shorter, and yet one word more. So the words of both
texts are aligned by similarity, and the words left at the end are new.
"""

import re
from collections.abc import Sequence

ALIGN_WINDOW_WORDS = 40
"""Maximum number of known words, counted from the end, that are aligned."""

MAX_NEW_WORDS = 10
"""Maximum number of new words in one message that are aligned; later words count as new."""

POSITION_WEIGHT = 0.4
"""Cost per word of distance from the position estimate; an inserted or deleted word costs 1. The
estimate is inexact, because a provider's lag differs between sockets."""

MAX_UPDATE_INTERVAL_S = 5.0
"""Maximum interval between two updates, however long the text is."""

SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
"""White space, including zero-width spaces, which Unicode does not count as white space."""

_UNSPACED = (
    "\u0e00-\u109f"  # Thai, Lao, Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f"  # CJK
    "\U00020000-\U0003ffff"
)
"""Scripts without spaces between words. Hangul has spaces."""

_WORD = re.compile(f"[{_UNSPACED}]|[^{SPACES}{_UNSPACED}]+")
"""A word; each character of a script without spaces counts as one."""

_SPACE_RUN = re.compile(f"[{SPACES}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_CLOSING = re.compile(
    f"[^\\w{SPACES}{_UNSPACED}(\\[{{\u00bf\u00a1]*[\u3001\u3002\u300d\u300f\u3011\uff01\uff09\uff0c\uff1a\uff1b\uff1f]*"
)
"""Punctuation that belongs to the word before it."""


def new_text(known: str, replayed: str, caught_up: int) -> str:
    """Return the end of `replayed`, with the space before it, that is not in `known`.

    `replayed` is a new transcript of the audio that `known` covers, and perhaps of more.
    `caught_up` estimates how many words of `replayed` cover the audio of `known`.
    """
    letters = _letters(replayed)
    if letters and _letters(known).startswith(letters):
        return ""  # also if the last word is not complete yet
    matches, known_words = list(_WORD.finditer(replayed)), _WORD.findall(known)
    words = [match.group() for match in matches]
    same = _common_prefix(known_words, words)
    # One message may repeat all the text, with no message before it.
    least = min(len(known_words), len(words)) - MAX_NEW_WORDS
    caught_up = min(max(caught_up, least, same), len(words))
    first = max(same, caught_up - ALIGN_WINDOW_WORDS)
    end = first + _aligned_words(
        known_words[same:] if first == same else known_words[-ALIGN_WINDOW_WORDS:],
        words[first : caught_up + MAX_NEW_WORDS],
        caught_up - first,
    )
    added = replayed[matches[end - 1].end() if end else 0 :]
    return "" if is_blank(added) else added


def word_count(text: str) -> int:
    """Return how many words `new_text` counts in a text."""
    return len(_WORD.findall(text))


def is_blank(text: str) -> bool:
    """Return whether a text has only white space."""
    return not text.strip(SPACES)


def leading_space(text: str) -> str:
    """Return the white space at the beginning of a text."""
    return text[: len(text) - len(text.lstrip(SPACES))]


def same_but_space(text: str, other: str) -> bool:
    """Return whether two texts differ in white space at most."""
    return text == other or _SPACE_RUN.sub("", text) == _SPACE_RUN.sub("", other)


def covers(text: str, known: str) -> bool:
    """Return whether a text can replace `known` because it is not shorter.

    Its length is compared both with white space and without.
    """
    if text.startswith(known):
        return True
    return len(text) >= len(known) and _ink(text) >= _ink(known)


def says_more(text: str, known: str) -> bool:
    """Return whether a text covers `known` and adds more than white space."""
    if text.startswith(known):
        return not is_blank(text[len(known) :])
    return covers(text, known) and _ink(text) > _ink(known)


def parting(before: str, whole: str) -> str | None:
    """Return what the provider wrote between the text `before` and the next word in `whole`.

    `whole` begins with `before`. Returns None if no word follows, or if the text that follows
    belongs to the last word of `before`.
    """
    rest = whole[len(before) :]
    if is_blank(rest):
        return None
    if before != before.rstrip(SPACES):
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
    """Join two texts of one turn that were transcribed separately.

    White space at the end of `before` or at the beginning of `after` separates them; if both have
    some, that of `before` is kept. If neither has any, the last white space inside `before` is
    repeated, or a space is added. No space is added next to a script without spaces.
    """
    if not before or not after:
        return before + after
    if before[-1] in SPACES:
        return before + after.lstrip(SPACES)
    if after[0] in SPACES or _IS_UNSPACED.match(before[-1]) or _IS_UNSPACED.match(after[0]):
        return before + after
    spaces = _SPACE_RUN.findall(before) or [" "]
    return f"{before}{spaces[-1]}{after}"


def same_words(text: str, other: str) -> bool:
    """Return whether two texts differ at most in case and punctuation."""
    if text.startswith(other):  # the usual case: each update of a growing turn
        return not any(map(str.isalnum, text[len(other) :]))
    return _letters(text) == _letters(other)


def _ink(text: str) -> int:
    return len(_SPACE_RUN.sub("", text))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _aligned_words(known: Sequence[str], replayed: Sequence[str], about: int) -> int:
    """Return how many words of `replayed` match `known`; `about` is the estimate."""
    # costs[n] is the edit distance from the known words so far to the first n replayed words.
    costs = [float(count) for count in range(len(replayed) + 1)]
    for word in known:
        diagonal, costs[0] = costs[0], costs[0] + 1
        for at, other in enumerate(replayed, 1):
            cost = min(diagonal + _word_distance(word, other), costs[at] + 1, costs[at - 1] + 1)
            diagonal, costs[at] = costs[at], cost
    return min(
        range(len(costs)),
        key=lambda count: (costs[count] + POSITION_WEIGHT * abs(count - about), -count),
    )


def _word_distance(word: str, other: str) -> float:
    """Return the distance of two words: 0 if their letters are equal, 1 if they share none.

    Providers write different punctuation.
    """
    shorter, longer = sorted((_letters(word), _letters(other)), key=len)
    if not shorter:
        return float(word != other)
    if shorter in longer:
        shared = len(shorter)
    else:
        ahead = _common_prefix(shorter, longer)
        shared = ahead + _common_prefix(shorter[ahead:][::-1], longer[ahead:][::-1])
    return 1 - 2 * shared / (len(shorter) + len(longer))


def _common_prefix(known: Sequence[str], replayed: Sequence[str]) -> int:
    """Return how many equal words, or letters, are at the beginning of both."""
    pairs = enumerate(zip(known, replayed, strict=False))
    unlike = (at for at, (one, other) in pairs if one != other)
    return next(unlike, min(len(known), len(replayed)))


class UpdateThrottle:
    """Limits how often the growing text of a turn is published, for one session.

    Every update contains the whole text of its turn, so ten minutes of updates for every word would
    cost megabytes. The interval to the next update grows with the text. A session thus writes a
    steady number of bytes a second, and consumers receive short turns word by word.

    Times are seconds on one monotonic clock.
    """

    __slots__ = (
        "_next_at",
        "_s_per_char",
    )

    def __init__(self, interval_ms: float) -> None:
        """`interval_ms` is the interval after a text of 1,000 characters; 0 is none."""
        self._s_per_char = interval_ms / 1_000_000
        self._next_at = float("-inf")

    def published(self, text: str, now: float) -> None:
        """Record that a text was published, in an event of any kind."""
        self._next_at = now + min(MAX_UPDATE_INTERVAL_S, len(text) * self._s_per_char)

    def reset(self) -> None:
        """Allow the next update at once, because it is the first of a turn."""
        self._next_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Return whether an update may be published."""
        return now >= self._next_at
