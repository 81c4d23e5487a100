"""Summary of the demo: the results of each session in numbers, and as a table. No I/O."""

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.local.demo.state import DemoState, SessionState
from worker.local.wer import word_error_rate, words

_NEXT: Final = (
    ("turnbus dev", "the same parts until Ctrl-C, with a page that you speak to"),
    ("turnbus demo my.wav", "run the demo with your own recording"),
    ("turnbus stt-server", "run this recognizer for your own workers"),
    ("turnbus push my.wav --session a", "a producer; two XADDs in any language"),
    ("turnbus ingest", "a gateway for carriers, PBXs and browsers: docs/ingest.md"),
    ("turnbus watch", "a consumer: turns as they are published"),
)
_NEXT_NOTE: Final = "docs/tutorial.md explains each step, docs/protocol.md every field and event."


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results of one session, or of all. Delays are from the end of speech to `turn.end`."""

    session: str
    turns: int
    eager_ends: int
    resumes: int
    words: int
    connections: int
    missing_ms: int
    word_error_rate: float | None = None
    """Word error rate; None if the reference transcript is unknown."""
    end_delay_median_s: float | None = None
    end_delay_max_s: float | None = None
    speaker: str = ""
    encoding: str = ""
    sample_rate: int = 0
    workers: tuple[str, ...] = ()
    transcript: str = ""
    errors: tuple[str, ...] = ()


class Kill(msgspec.Struct, frozen=True):
    """A worker that the demo killed, and the sessions that moved to another worker."""

    worker: str
    sessions: tuple[str, ...]
    moved_after_s: float


class Summary(msgspec.Struct, frozen=True, tag="demo.summary"):
    """Results of the whole demo."""

    seconds: float
    sessions: tuple[Result, ...]
    total: Result
    kill: Kill | None


def summarize(state: DemoState, now: float) -> Summary:
    """Summarize the state at this Unix time."""
    rows = list(state.rows.values())
    kill = None
    if state.killed is not None:
        moved_after_s = round(max(0.0, state.moved_at - state.killed_at), 3)
        kill = Kill(state.killed, tuple(state.moved), moved_after_s)
    return Summary(
        seconds=round(now - state.began_at, 3),
        sessions=tuple(_result(row) for row in rows),
        total=_together("total", rows),
        kill=kill,
    )


def transcript(row: SessionState) -> str:
    """Return the text of a session, its turns separated by spaces."""
    return " ".join(turn.text.strip() for _, turn in sorted(row.turns.items()))


def _result(row: SessionState) -> Result:
    role = row.role
    return msgspec.structs.replace(
        _together(role.session, [row]),
        speaker=role.speaker,
        encoding=role.line.encoding.value,
        sample_rate=role.line.sample_rate,
        workers=tuple(row.workers),
        transcript=transcript(row),
        errors=tuple(row.errors),
    )


def _together(name: str, rows: Sequence[SessionState]) -> Result:
    turns = [turn for row in rows for turn in row.turns.values()]
    delays = [turn.end_delay_s for turn in turns if turn.end_delay_s is not None]
    known = [(row.role.text, transcript(row)) for row in rows if row.role.text is not None]
    return Result(
        session=name,
        turns=len(turns),
        eager_ends=sum(len(turn.eager_ends) for turn in turns),
        resumes=sum(turn.resumes for turn in turns),
        words=sum(len(words(transcript(row))) for row in rows),
        connections=sum(row.connections for row in rows),
        missing_ms=sum(row.missing_ms for row in rows),
        word_error_rate=round(word_error_rate(*zip(*known, strict=True)), 4) if known else None,
        end_delay_median_s=round(median(delays), 3) if delays else None,
        end_delay_max_s=round(max(delays), 3) if delays else None,
    )


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
