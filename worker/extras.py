"""What is installed with turnbus only where it is asked for, and how to ask."""

from typing import Literal


def how_to_install(extra: Literal["local", "otlp"]) -> str:
    """Return the advice that ends a line about a missing part, to be pasted into a shell."""
    return f"run: pip install 'turnbus[{extra}]'"
