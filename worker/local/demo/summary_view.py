"""Final output of the demo: the summary as a table, and the next commands to try."""

from typing import Final

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.local.demo.summary import Result, Summary

_NEXT: Final = (
    ("turnbus demo my.wav", "run the demo with your own recording"),
    ("turnbus stt-server", "run this recognizer for your own workers"),
    ("turnbus push my.wav --session a", "a producer; two XADDs in any language"),
    ("turnbus watch", "a consumer: turns as they are published"),
)
_NEXT_NOTE: Final = "docs/tutorial.md explains each step, docs/protocol.md every field and event."


def closing(summary: Summary) -> Group:
    """Draw the final output."""
    ways = Table.grid(padding=(0, 3))
    for command, about in _NEXT:
        ways.add_row(Text(command, style="cyan"), about)
    return Group(
        Text("Summary", style="bold"),
        _table(summary),
        *(Text(note, style="dim") for note in _notes(summary)),
        Text("\nWhere to go next", style="bold"),
        Padding(ways, (0, 0, 0, 2)),
        Padding(Text(_NEXT_NOTE, style="dim"), (0, 0, 0, 2)),
    )


def _table(summary: Summary) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("\nsession", "total")
    table.add_column("\naudio")
    table.add_column("\nworker")
    titles = ("\nturns", "\nwords", "word\nerrors", "to turn.end\nmedian", "\nmax", "\nsockets")
    for title, foot in zip(titles, _numbers(summary.total), strict=True):
        table.add_column(title, foot, justify="right")
    for result in summary.sessions:
        audio = f"{result.encoding.removeprefix('pcm_')} {result.sample_rate // 1000}k"
        workers = ", ".join(name.removeprefix("worker-") for name in result.workers)
        table.add_row(result.session, audio, workers, *_numbers(result))
    return table


def _numbers(result: Result) -> tuple[str, ...]:
    rate = result.word_error_rate
    return (
        str(result.turns),
        str(result.words),
        "-" if rate is None else f"{rate:.1%}",
        _seconds(result.end_delay_median_s),
        _seconds(result.end_delay_max_s),
        str(result.connections),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _notes(summary: Summary) -> list[str]:
    about_delay = (
        "To turn.end: from the end of speech until the demo reads the event from Redis; most of "
        "it is the silence that the recognizer waits for."
    )
    notes = [about_delay]
    if summary.total.word_error_rate is None:
        notes.append("Word errors: unknown, because these files have no reference transcript.")
    if summary.kill is not None:
        moved = ", ".join(summary.kill.sessions)
        notes.append(
            f"{summary.kill.worker} was killed: {moved} moved within "
            f"{summary.kill.moved_after_s:.1f} s, their open turns replayed from Redis."
        )
    if summary.total.missing_ms:
        notes.append(f"{summary.total.missing_ms} ms of audio could not be transcribed.")
    return notes + [f"{one.session}: {text}" for one in summary.sessions for text in one.errors]
