"""How the script engine puts words together: the separators that providers use."""

import random
from typing import Final

import msgspec


class TextStyle(msgspec.Struct, frozen=True, kw_only=True):
    """Separators of a transcript. The texts of a connection's turns join verbatim in any style."""

    begin: str = ""
    """Before the first word of a connection's first turn."""
    later: str = ""
    """Before the first word of a later turn."""
    between: str = ""
    after: str = ""
    """After every word."""

    @property
    def spaced(self) -> bool:
        """Whether anything is between two words."""
        return bool(self.between + self.after)

    def text(self, words: list[str], begin: str) -> str:
        """Write the words of a turn."""
        return begin + self.between.join(word + self.after for word in words) if words else ""

    def writes(self, text: str, words: list[str]) -> bool:
        """Return whether a turn of these words has this very text, on some connection."""
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
"""By name. `leading` is the provider's."""

DRAWN: Final = "drawn"
"""In the place of a name: drawn by a seed."""

REWORDABLE: Final = tuple(name for name, style in STYLES.items() if style.spaced)
"""Styles in which a reworded word can be told from the next one."""


def draw_style(seed: int, *, rewording: bool) -> str:
    """Draw a style by a seed."""
    rng = random.Random(f"{seed} text style")  # noqa: S311 - a schedule, not a secret
    return rng.choice(REWORDABLE if rewording else tuple(STYLES))
