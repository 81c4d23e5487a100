"""Word separators of the script engine: the styles that providers use."""

import random
from typing import Final

import msgspec


class TextStyle(msgspec.Struct, frozen=True, kw_only=True):
    """Separators of a transcript. In every style, the texts of turns can be joined verbatim."""

    begin: str = ""
    """Text before the first word of a connection's first turn."""
    later: str = ""
    """Text before the first word of a later turn."""
    between: str = ""
    after: str = ""
    """Text after every word."""

    @property
    def spaced(self) -> bool:
        """Whether two words are separated."""
        return bool(self.between + self.after)

    def text(self, words: list[str], begin: str) -> str:
        """Return the text of a turn's words."""
        return begin + self.between.join(word + self.after for word in words) if words else ""

    def writes(self, text: str, words: list[str]) -> bool:
        """Return whether `text` is the text of a turn of these words, on any connection."""
        return text in (self.text(words, self.begin), self.text(words, self.later))


DEFAULT_STYLE: Final = "leading"

STYLES: Final = {
    "leading": TextStyle(later=" ", between=" "),
    "trailing": TextStyle(after=" "),
    "padded": TextStyle(begin=" ", later=" ", between=" "),
    "double": TextStyle(later="  ", between="  "),
    "lines": TextStyle(later="\n", between="\n"),
    "crlf": TextStyle(after="\r\n"),
    "tabs": TextStyle(after="\t"),
    "no-break": TextStyle(later="\u00a0", between="\u00a0"),
    "none": TextStyle(),
}
"""Styles by name. The provider uses `leading`."""

DRAWN: Final = "drawn"
"""Placeholder for a style drawn with a seed."""

REWORDABLE: Final = tuple(name for name, style in STYLES.items() if style.spaced)
"""Styles in which a reworded word and the next word are separated."""


def draw_style(seed: int, *, rewording: bool) -> str:
    """Draw a style with a seed."""
    rng = random.Random(f"{seed} text style")  # noqa: S311 - a schedule, not a secret
    return rng.choice(REWORDABLE if rewording else tuple(STYLES))
