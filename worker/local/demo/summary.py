"""Summary of the demo: the results of each session in numbers, and as a table. No I/O."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

import msgspec
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.local.demo.state import DemoState, SessionState, Turn
from worker.local.wer import lost_and_repeated, word_error_rate, words
from worker.text import pluralize

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
    words_lost: int | None = None
    """Words in passages that are missing; None if the reference transcript is unknown."""
    words_repeated: int | None = None
    end_delay_median_s: float | None = None
    end_delay_max_s: float | None = None
    speaker: str = ""
    encoding: str = ""
    sample_rate: int = 0
    workers: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    transcript: str = ""
    errors: tuple[str, ...] = ()


class Kill(msgspec.Struct, frozen=True):
    """A worker that the demo killed, and the sessions that moved to another worker."""

    worker: str
    sessions: tuple[str, ...]
    moved_after_s: float


class FailOver(msgspec.Struct, frozen=True):
    """A provider that the demo killed, and the sessions that continued at another one.

    Times are seconds after the kill. `later` is how much later the turns that moved ended than the
    median of the others, in seconds after the end of speech; None if no turn moved.
    """

    provider: str
    sessions: tuple[str, ...]
    continued_after_s: float | None
    """When the last session continued; None if none did."""
    turns: int
    """Number of turns that moved while they were open."""
    later_median_s: float | None
    later_max_s: float | None
    breaker_open_after_s: float | None
    """When the breaker was open; None if it never was."""
    back_after_s: float | None
    """When the provider was started again; None if the demo was over before."""
    returned: tuple[str, ...]
    """Sessions that it served then."""


class Summary(msgspec.Struct, frozen=True, tag="demo.summary"):
    """Results of the whole demo."""

    seconds: float
    sessions: tuple[Result, ...]
    total: Result
    kill: Kill | None
    fail_over: FailOver | None

    @property
    def complete(self) -> bool:
        """Whether no word is known to be lost or repeated."""
        return not self.total.words_lost and not self.total.words_repeated


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
        fail_over=None if state.failed is None else _fail_over(state, state.failed),
    )


def _fail_over(state: DemoState, provider: str) -> FailOver:
    turns = [turn for row in state.rows.values() for turn in row.turns.values()]
    moved = [turn for turn in turns if turn.moved]
    usual = _delays(turn for turn in turns if not turn.moved)
    later = [delay - median(usual) for delay in _delays(moved)] if usual else []
    open_at, back_at, continued = state.avoided_at, state.back_at, state.continued_at
    return FailOver(
        provider=provider,
        sessions=tuple(continued),
        continued_after_s=_rounded(max(continued.values()) - state.failed_at)
        if continued
        else None,
        turns=len(moved),
        later_median_s=_rounded(median(later)) if later else None,
        later_max_s=_rounded(max(later)) if later else None,
        breaker_open_after_s=None if open_at is None else _rounded(open_at - state.failed_at),
        back_after_s=None if back_at is None else _rounded(back_at - state.failed_at),
        returned=tuple(state.returned),
    )


def _delays(turns: Iterable[Turn]) -> list[float]:
    return [turn.end_delay_s for turn in turns if turn.end_delay_s is not None]


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


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
        providers=tuple(row.providers),
        transcript=transcript(row),
        errors=tuple(row.errors),
    )


def _together(name: str, rows: Sequence[SessionState]) -> Result:
    turns = [turn for row in rows for turn in row.turns.values()]
    delays = _delays(turns)
    known = [(row.role.text, transcript(row)) for row in rows if row.role.text is not None]
    passages = [lost_and_repeated(*each) for each in known]
    return Result(
        session=name,
        turns=len(turns),
        eager_ends=sum(len(turn.eager_ends) for turn in turns),
        resumes=sum(turn.resumes for turn in turns),
        words=sum(len(words(transcript(row))) for row in rows),
        connections=sum(row.connections for row in rows),
        missing_ms=sum(row.missing_ms for row in rows),
        word_error_rate=round(word_error_rate(*zip(*known, strict=True)), 4) if known else None,
        words_lost=sum(lost for lost, _ in passages) if known else None,
        words_repeated=sum(repeated for _, repeated in passages) if known else None,
        end_delay_median_s=_rounded(median(delays)) if delays else None,
        end_delay_max_s=_rounded(max(delays)) if delays else None,
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
    several = summary.fail_over is not None
    table.add_column("\nproviders" if several else "\nworker")
    titles = ("\nturns", "\nwords", "word\nerrors", "to turn.end\nmedian", "\nmax", "\nsockets")
    for title, foot in zip(titles, _numbers(summary.total), strict=True):
        table.add_column(title, foot, justify="right")
    for result in summary.sessions:
        audio = f"{result.encoding.removeprefix('pcm_')} {result.sample_rate // 1000}k"
        served = result.providers if several else result.workers
        names = ", ".join(name.removeprefix("worker-") for name in served)
        table.add_row(result.session, audio, names, *_numbers(result))
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
    total = summary.total
    if total.word_error_rate is None:
        notes.append("Word errors: unknown, because these files have no reference transcript.")
    else:
        notes.append(
            f"{'' if summary.complete else 'FAILED: '}Words lost: {total.words_lost}, repeated: "
            f"{total.words_repeated}, in passages of three or more. Other word errors are the "
            "recognizer's."
        )
    if summary.kill is not None:
        moved = ", ".join(summary.kill.sessions)
        notes.append(
            f"{summary.kill.worker} was killed: {moved} moved within "
            f"{summary.kill.moved_after_s:.1f} s, their open turns replayed from Redis."
        )
    if summary.fail_over is not None:
        notes += _notes_on_failover(summary.fail_over)
    if summary.total.missing_ms:
        notes.append(f"{summary.total.missing_ms} ms of audio could not be transcribed.")
    return notes + [f"{one.session}: {text}" for one in summary.sessions for text in one.errors]


def _notes_on_failover(failed: FailOver) -> list[str]:
    if failed.continued_after_s is None:
        return [f"{failed.provider} was killed: no session needed another provider."]
    moved = (
        f"{failed.provider} was killed: {', '.join(failed.sessions)} continued at the other "
        f"provider, with new text within {failed.continued_after_s:.1f} s."
    )
    notes = [moved]
    if failed.later_median_s is not None and failed.later_max_s is not None:
        notes.append(
            f"{pluralize(failed.turns, 'open turn')} moved. To turn.end, compared with the other "
            f"turns: {failed.later_median_s:.2f} s later (median), "
            f"{failed.later_max_s:.2f} s (max)."
        )
    if failed.breaker_open_after_s is None:
        notes.append(f"The breaker of {failed.provider} stayed closed: too few failures.")
    else:
        notes.append(
            f"The breaker of {failed.provider} was open {failed.breaker_open_after_s:.1f} s after "
            "the kill: from then on new sockets went to the other provider."
        )
    if failed.returned:
        notes.append(
            f"{failed.provider} was back after {failed.back_after_s:.1f} s, and served "
            f"{', '.join(failed.returned)}."
        )
    return notes
