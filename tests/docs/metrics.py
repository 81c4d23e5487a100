"""Generates the tables of metrics from the instruments: `python -m tests.docs.metrics`."""

from collections.abc import Iterable
from typing import Any, Final

from tests.docs.pages import write_block
from worker.ingest import metrics as gateway
from worker.telemetry import metrics as worker
from worker.telemetry.metrics import Instrument

BLOCK: Final = "metrics"


def tables() -> dict[str, str]:
    """Return the table of each page that has one."""
    return {
        "observability.md": _table(worker.INSTRUMENTS),
        "ingest.md": _table(gateway.INSTRUMENTS),
    }


def _table(instruments: Iterable[Instrument[Any]]) -> str:
    """Return a table with one row per instrument."""
    lines = ["| metric | kind | unit | by | |", "|---|---|---|---|---|"]
    for each in instruments:
        names = filter(None, (*each.constants, each.attribute))
        attribute = "".join(f"`{name}` " for name in names)
        lines.append(
            f"| `{each.name}` | {each.kind} | `{each.unit}` | {attribute}| {each.description} |"
        )
    return "\n".join(["", *lines, "", ""])


if __name__ == "__main__":
    for page, table in tables().items():
        write_block(page, BLOCK, table)
