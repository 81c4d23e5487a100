"""Terminal display of the demo: a row for each session, updated word by word."""

import time
from collections.abc import Iterator, Sequence
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.status import Status
from rich.table import Table
from rich.text import Text

from worker.local.demo.display import Display, ReceivedEvent
from worker.local.demo.state import DemoState, SessionState, Turn
from worker.local.demo.summary import Summary, closing
from worker.local.demo.traces import Span, waterfall
from worker.text import pluralize

_FRAME_S: Final = 0.08
_MARGIN: Final = 2
_WIDE: Final = 100
_BAR: Final = 8
_WIDE_BAR: Final = 16
_COLOURS: Final = ("cyan", "magenta", "yellow", "blue")

_CURSOR: Final = ("▌", "bold cyan")
_EAGER: Final = ("◐", "bold yellow")
_RESUMED: Final = ("↻", "magenta")
_ENDED: Final = ("✓", "bold green")


class LiveView(Display):
    """Shows the sessions on a full screen; prints all turns and the summary at the end."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._status = Status("", console=self._console)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._status.stop()
        self._live.stop()

    def status(self, text: str) -> None:
        """Show a progress message until the first update."""
        self._status.update(text)

    def update(self, state: DemoState, received: Sequence[ReceivedEvent]) -> None:
        """Draw the sessions, at most once a frame."""
        del received
        if not self._live.is_started:
            self._status.stop()
            self._live.start()
        now = time.time()
        if now - self._drawn >= _FRAME_S:
            self._drawn = now
            width, height = self._console.size
            self._live.update(draw(state, now, width, height), refresh=True)

    def finish(self, state: DemoState, summary: Summary, spans: Sequence[Span]) -> None:
        """Print all turns, the spans and the summary."""
        self._live.stop()
        width = self._console.width
        self._console.print(*_sessions(state, time.time(), width), "", _legend(), sep="\n")
        if spans:
            self._console.print("", waterfall(spans, state.began_at, state.killed), sep="\n")
        self._console.print("", closing(summary), sep="\n")


def draw(state: DemoState, now: float, width: int, height: int) -> RenderableType:
    """Draw the sessions for a screen of this size."""
    frame = 4  # title, legend and two rules
    lines = max(1, (height - frame) // len(state.rows))
    notice = state.notices[-1][1] if state.notices else ""
    return Group(
        _title(state, now),
        Rule(style="dim"),
        *_sessions(state, now, width, lines),
        Rule(Text(notice, style="bold"), style="dim"),
        _legend(),
    )


def _title(state: DemoState, now: float) -> Table:
    seconds = int(now - state.began_at)
    title = Table.grid(expand=True)
    title.add_column(no_wrap=True)
    title.add_column(no_wrap=True, justify="right")
    loads = [_worker_load(state, worker) for worker in state.workers]
    if len(state.providers) > 1:
        loads = [_provider_load(state, provider) for provider in state.providers]
    clock = Text(f"   {seconds // 60}:{seconds % 60:02}   Ctrl-C ends", style="dim")
    title.add_row(Text("turnbus demo", style="bold"), Text("   ").join(loads) + clock)
    return title


def _worker_load(state: DemoState, worker: str) -> Text:
    if worker == state.killed:
        return Text(f"{worker} killed", style="bold red")
    count = pluralize(len(state.owned_by(worker)), "session")
    return Text(f"{worker}: {count}", style=_colour(state, worker))


def _provider_load(state: DemoState, provider: str) -> Text:
    if provider == state.away:
        return Text(f"{provider} killed", style="bold red")
    return Text(f"{provider}: {pluralize(len(state.served_by(provider)), 'session')}")


def _colour(state: DemoState, worker: str) -> str:
    return _COLOURS[state.workers.index(worker) % len(_COLOURS)]


def _sessions(
    state: DemoState, now: float, width: int, lines: int | None = None
) -> Iterator[RenderableType]:
    """Draw each session in a number of lines, None for no limit."""
    names = max(len(name) for name in state.rows)
    for row in state.rows.values():
        if lines == 1:
            yield _brief(row, state, now, width, names)
            continue
        yield _head(row, state, width, names)
        wrapped = list(_all_turns(row, state, now).wrap(Console(width=width), width - _MARGIN))
        if lines is not None:
            wrapped += [Text()] * (lines - 1 - len(wrapped))
            wrapped = wrapped[len(wrapped) + 1 - lines :]
        if wrapped:
            yield Padding(Text("\n").join(wrapped), (0, 0, 0, _MARGIN))


def _brief(row: SessionState, state: DemoState, now: float, width: int, names: int) -> Text:
    """Draw a session in one line: name, owner, the end of its transcript."""
    line = Text().append(f"{row.role.session:{names}}  ", style="bold")
    line.append_text(_owners(row, state, row.workers[-1:]))
    line.pad_right(names + 2 + len("worker-1") + 2 - len(line))
    said = _all_turns(row, state, now)
    return line.append_text(said[max(0, len(said) - (width - len(line))) :])


def _head(row: SessionState, state: DemoState, width: int, names: int) -> Table:
    role = row.role
    wide = width >= _WIDE
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(width=names)
    head.add_column(no_wrap=True, ratio=1)
    head.add_column(width=len("pcm_s16le 16 kHz"))
    head.add_column(width=len("worker-1 > worker-2") if wide else len("worker-1"))
    head.add_column(width=len("cartesia #1"))
    head.add_column(width=_WIDE_BAR if wide else _BAR)
    head.add_row(
        Text(role.session, style="bold"),
        Text(role.speaker, style="dim"),
        Text(f"{role.line.encoding} {role.line.sample_rate // 1000} kHz", style="dim"),
        _owners(row, state, row.workers if wide else row.workers[-1:]),
        _socket(row, state),
        ProgressBar(1.0, row.played),
    )
    return head


def _socket(row: SessionState, state: DemoState) -> Text:
    """Draw the provider, and the number of the session's socket."""
    if not row.providers:
        return Text()
    provider = row.providers[-1]
    style = "dim" if provider == state.providers[0] else "bold"
    return Text(
        f"{provider} #{row.connections}", style="strike red" if provider == state.away else style
    )


def _owners(row: SessionState, state: DemoState, workers: Sequence[str]) -> Text:
    return Text(" > ").join(
        Text(worker, style="strike red" if worker == state.killed else _colour(state, worker))
        for worker in workers
    )


def _all_turns(row: SessionState, state: DemoState, now: float) -> Text:
    """Draw all turns of a session, or the time until it begins."""
    parts = Text()
    if not row.run:
        waits_s = state.began_at + row.role.enters_s - now
        parts.append(f"starts in {max(0.0, waits_s):.0f} s", style="dim")
    for _, turn in sorted(row.turns.items()):
        if parts and not turn.text.startswith(" "):
            parts.append(" ")
        parts.append_text(_turn(turn))
    for error in row.errors:
        parts.append(f" {error}", style="red")
    if row.missing_ms:
        parts.append(f" {row.missing_ms} ms of audio missing", style="red")
    return parts


def _turn(turn: Turn) -> Text:
    """Draw a turn: its text, with a mark where it resumed after an eager end."""
    parts = Text()
    style = "" if turn.state == "ended" else "bold"
    # A replay may change the words of a turn: the text may lack an earlier eager end.
    resumed = {len(text) for text in turn.eager_ends[: turn.resumes] if turn.text.startswith(text)}
    done = 0
    for position in sorted(resumed):
        parts.append(turn.text[done:position], style=style).append(*_EAGER).append(*_RESUMED)
        done = position
    parts.append(turn.text[done:], style=style)
    match turn.state:
        case "open":
            parts.append(*_CURSOR)
        case "eager":
            parts.append(*_EAGER)
        case "ended":
            delay = "" if turn.end_delay_s is None else f"{turn.end_delay_s:.1f}s"
            parts.append(" ").append(*_ENDED).append(delay, style="green")
    return parts


def _legend() -> Text:
    return Text.assemble(
        *(_CURSOR, " speaking   "),
        *(_EAGER, " eager end   "),
        *(_RESUMED, " resumed   "),
        *(_ENDED, " turn ended, s after the speech"),
        style="dim",
        no_wrap=True,
        overflow="ellipsis",
    )
