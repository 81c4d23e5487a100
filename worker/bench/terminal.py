"""Terminal output of a benchmark: progress on standard error, report on standard output."""

import sys
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from worker.bench.report import NOTES, LoadReport, footer, rows, text_of, title


class Progress:
    """Receives the progress of a run, and shows nothing."""

    def phase(self, text: str) -> None:
        """Show the phase that begins."""

    def detail(self, text: str) -> None:
        """Show the progress within the phase."""


class TerminalProgress(Progress):
    """Shows a status line on a terminal, or prints a line per phase."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._status = Status("", console=console) if console.is_terminal else None
        self._phase = ""

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._status is not None:
            self._status.stop()

    def phase(self, text: str) -> None:
        """Show the phase that begins."""
        self._phase = text
        if self._status is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._status.update(text)

    def detail(self, text: str) -> None:
        """Show the progress within the phase."""
        if self._status is not None:
            self._status.update(f"{self._phase}: {text}")


def show(report: LoadReport) -> None:
    """Print the report: a table on a terminal, plain text otherwise."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print(text_of(report), end="")
        return
    first, *rest = title(report)
    console.print(Text(first, style="bold"), *(Text(line, style="dim") for line in rest), sep="\n")
    console.print("", _table(report), "", sep="\n")
    console.print(Text("\n".join(NOTES), style="dim"), "", sep="\n")
    for line in footer(report):
        console.print(Text(line, style="yellow" if line.startswith("warning") else "bold red"))


def _table(report: LoadReport) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    for row in rows(report):
        table.add_row(*row)
    return table
