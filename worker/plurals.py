"""Numbers of things, in words people read."""


def counted(number: int, noun: str) -> str:
    """Return "1 session" or "2 sessions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
