"""Generates the table of metrics from the instruments: `python -m tests.docs.metrics`."""

from typing import Final

from tests.docs.pages import write_block
from worker.telemetry.metrics import INSTRUMENTS

PAGE: Final = "observability.md"
BLOCK: Final = "metrics"


def table() -> str:
    """Return the table with one row per instrument."""
    lines = ["| metric | kind | unit | by | |", "|---|---|---|---|---|"]
    for each in INSTRUMENTS:
        names = filter(None, (*each.constants, each.attribute))
        attribute = "".join(f"`{name}` " for name in names)
        lines.append(
            f"| `{each.name}` | {each.kind} | `{each.unit}` | {attribute}| {each.description} |"
        )
    return "\n".join(["", *lines, "", ""])


if __name__ == "__main__":
    write_block(PAGE, BLOCK, table())
