"""Texts for people: phrases, untrusted text made safe for a terminal, and widths in columns.

A worker prints no columns. `wcwidth` is imported where it is used: its tables load in 20 ms.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

_REPLACEMENT = "\ufffd"
_ELLIPSIS = "…"
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, with which escape sequences begin
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # surrogates, which no encoding takes
    "\ufdd0-\ufdef\ufffe\uffff]"  # noncharacters
)
_PDF, _PDI = "\u202c", "\u2069"
_CLOSERS = {
    **dict.fromkeys("\u202a\u202b", _PDF),  # embeddings
    **dict.fromkeys("\u2066\u2067\u2068", _PDI),  # isolates
}
_OVERRIDES = "\u202d\u202e"
_DIRECTIONAL = re.compile(f"[{_OVERRIDES}{_PDF}{_PDI}{''.join(_CLOSERS)}]")

CARTESIA_KEY = re.compile(r"sk_car_\w*")
DEEPGRAM_KEY = re.compile(r"(?<![\w/-])[0-9a-fA-F]{40}(?![\w/-])")
"""Matches no part of a path, which may be a digest."""


def pluralize(number: int, noun: str) -> str:
    """Return "1 session" or "2 sessions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def install_hint(extra: Literal["local", "otlp"]) -> str:
    """Return the shell command that installs an extra, for error messages."""
    return f"run: pip install 'turnbus[{extra}]'"


def printable(text: str) -> str:
    """Return a text without terminal control sequences or unbalanced direction changes.

    Spaces, joiners, marks and letters of all scripts are kept. Embeddings and isolates of the other
    writing direction are kept too, and closed at the end of the text.
    """
    text = _UNSAFE.sub(_REPLACEMENT, text)
    return "".join(_closed(text)) if _DIRECTIONAL.search(text) else text


def without_keys(text: str) -> str:
    """Return a text with the API keys in it masked."""
    return DEEPGRAM_KEY.sub("***", CARTESIA_KEY.sub("sk_car_***", text))


def _closed(text: str) -> Iterator[str]:
    """Yield the characters of a text, with every embedding and isolate closed."""
    closers: list[str] = []
    for character in text:
        if character in _CLOSERS:
            closers.append(_CLOSERS[character])
            yield character
        elif character == _PDI and _PDI in closers:  # closes embeddings inside the isolate, too
            while closers.pop() != _PDI:
                pass
            yield character
        elif character == _PDF and closers[-1:] == [_PDF]:
            yield closers.pop()
        elif character in (_PDI, _PDF) or character in _OVERRIDES:
            yield _REPLACEMENT
        else:
            yield character
    yield from reversed(closers)


def width(text: str) -> int:
    """Return the width of a printable text in terminal columns."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, wcswidth(text))


def padded(text: str, columns: int) -> str:
    """Return a printable text, padded with spaces to a number of columns."""
    return text + " " * (columns - width(text))


def fitted(text: str, columns: int) -> str:
    """Return a printable text of at most `columns`; a wider text keeps its beginning and end."""
    if width(text) <= columns:
        return text
    from wcwidth import iter_graphemes

    characters = list(iter_graphemes(_DIRECTIONAL.sub("", text)))
    begin = _taken(characters, (columns - 1) // 2)
    end = _taken(reversed(characters), columns - 1 - width("".join(begin)))
    return "".join((*begin, _ELLIPSIS, *reversed(end)))


def _taken(characters: Iterable[str], columns: int) -> list[str]:
    """Return the first characters that fit into `columns`."""
    taken: list[str] = []
    for character in characters:
        columns -= width(character)
        if columns < 0:
            break
        taken.append(character)
    return taken
