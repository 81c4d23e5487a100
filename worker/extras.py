"""Optional dependencies (extras) of turnbus, and how to install them."""

from typing import Literal


def how_to_install(extra: Literal["local", "otlp"]) -> str:
    """Return the shell command that installs an extra, for error messages."""
    return f"run: pip install 'turnbus[{extra}]'"
