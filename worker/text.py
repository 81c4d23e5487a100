"""Texts that several modules build."""

from typing import Literal


def pluralize(number: int, noun: str) -> str:
    """Return "1 session" or "2 sessions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def install_hint(extra: Literal["local", "otlp"]) -> str:
    """Return the shell command that installs an extra, for error messages."""
    return f"run: pip install 'turnbus[{extra}]'"
