"""Plurals of English nouns."""


def counted(number: int, noun: str) -> str:
    """Return "1 session" or "2 sessions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
