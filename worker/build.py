"""The build that runs: its version, and whether its core is compiled."""

from importlib.metadata import version
from pathlib import Path
from typing import Literal

from worker.core import ledger

Form = Literal["compiled", "python"]


def form() -> Form:
    """Return `compiled` if the core is an extension module, made by mypyc from the same sources."""
    return "python" if Path(ledger.__file__).suffix == ".py" else "compiled"


def describe() -> dict[str, str]:
    """Return the version and the form."""
    return {"version": version("turnbus"), "form": form()}
