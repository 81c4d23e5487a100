"""Generates the tables of metrics from the instruments: `python -m tests.docs.metrics`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.docs.pages import write_block
from worker.ingest import metrics as gateway
from worker.telemetry import metrics as worker
from worker.telemetry.metrics import Instrument

PAGE: Final = "observability.md"
BLOCKS: Final[Mapping[str, Sequence[Instrument[Any]]]] = {
    "metrics": worker.INSTRUMENTS,
    "gateway metrics": gateway.INSTRUMENTS,
}


def table(instruments: Sequence[Instrument[Any]]) -> str:
    """Return the table with one row per instrument."""
    lines = ["| metric | kind | unit | by | |", "|---|---|---|---|---|"]
    for each in instruments:
        names = filter(None, (*each.constants, each.attribute))
        attribute = "".join(f"`{name}` " for name in names)
        lines.append(
            f"| `{each.name}` | {each.kind} | `{each.unit}` | {attribute}| {each.description} |"
        )
    return "\n".join(["", *lines, "", ""])


if __name__ == "__main__":
    for block, instruments in BLOCKS.items():
        write_block(PAGE, block, table(instruments))
