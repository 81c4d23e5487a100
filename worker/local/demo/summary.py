"""Summary of the demo: the results of each session, in numbers. No I/O."""

from collections.abc import Sequence
from statistics import median

import msgspec

from worker.local.demo.state import DemoState, SessionState
from worker.local.wer import word_error_rate, words


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
