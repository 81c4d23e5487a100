"""How the demo turns events into rows, numbers and screens. It starts no process."""

from io import StringIO
from itertools import count
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from schemas import Encoding
from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
)
from tests.support.sounds import pcm, tone
from worker.local.demo.display import PlainLines, ReceivedEvent
from worker.local.demo.live_display import draw
from worker.local.demo.sessions import DemoSession, LineFormat
from worker.local.demo.state import DemoState
from worker.local.demo.summary import Summary, closing, summarize

WORKERS = ("worker-1", "worker-2")
PROVIDERS = ("cartesia", "flux")
LINE = LineFormat(Encoding.PCM_S16LE, 16_000, 100)
T0 = 1_000.0
SPEECH_ENDS: dict[str, tuple[float, ...]] = {}


def role(session: str, text: str | None, *speech_ends: float, seconds: float = 6.0) -> DemoSession:
    SPEECH_ENDS[session] = speech_ends
    return DemoSession(session, f"speaker of {session}", LINE, 0.0, (), seconds, text)


def spoken(session: str, chunk: int) -> bytes:
    """A chunk of 100 ms: sound until half a second before speech ends, else silence."""
    at = chunk / 10 + np.arange(1_600) / 16_000
    loud = np.zeros(1_600, bool)
    for end in SPEECH_ENDS[session]:
        loud |= (at >= end - 0.5) & (at < end)
    return pcm(np.where(loud, tone(16_000, 0.1), 0).astype(np.float32))


class Play:
    """A board and its input: chunks sent on time from `T0` on, events at given times."""

    def __init__(self, *cast: DemoSession, providers: tuple[str, ...] = ("p",)) -> None:
        self.board = DemoState(list(cast), WORKERS, providers, T0)
        self._seq = count(1)
        for row in self.board.rows.values():
            for chunk in range(60):
                row.sending(spoken(row.role.session, chunk), T0 + (chunk + 1) / 10)

    def receive(self, kind: type[Any], session: str, second: float, **values: Any) -> None:
        common = {"run": f"{session}-0", "audio_ms": int(second * 1000), "connection": 1}
        fixed = {"seq": next(self._seq), "at": 0.0, "provider": "p", "request_id": ""}
        event: Event = kind(session=session, **{**fixed, **common, **values})
        self.board.on_event(event, T0 + second)

    def start(self, session: str, worker: str = "worker-1") -> None:
        values = {"metadata": {}, "encoding": LINE.encoding, "sample_rate": LINE.sample_rate}
        self.receive(SessionStarted, session, 0.0, worker=worker, connection=0, **values)

    def turn(self, session: str, number: int, text: str, end: float, **values: Any) -> None:
        self.receive(TurnStart, session, end - 2, turn=number, **values)
        self.receive(TurnUpdate, session, end - 1.5, turn=number, transcript=text[:5], **values)
        self.receive(TurnEagerEnd, session, end - 1, turn=number, transcript=text, **values)
        self.receive(TurnResume, session, end - 0.9, turn=number, **values)
        self.receive(TurnEagerEnd, session, end - 0.5, turn=number, transcript=text, **values)
        self.receive(TurnEnd, session, end, turn=number, transcript=text, reason="model", **values)

    def summary(self) -> Summary:
        return summarize(self.board, T0 + 10)


def test_row_has_numbers_of_session() -> None:
    play = Play(role("a", "One two three. Four five.", 1.25, 3.0, 5.5))
    play.start("a")
    play.turn("a", 0, "One too three.", 2.0)
    play.turn("a", 1, " Four five.", 4.0, connection=2)
    play.receive(AudioGap, "a", 4.5, missing_ms=70, reason="backlog")
    play.receive(SessionMark, "a", 4.5, mark={"key": "5"})
    play.receive(SessionError, "a", 4.5, code="c", message="so it is", status=0, fatal=False)
    play.receive(SessionEnded, "a", 5.0, reason="end", turns=2)
    assert play.board.over
    (result,) = play.summary().sessions
    assert (result.turns, result.eager_ends, result.resumes) == (2, 4, 2)
    assert (result.words, result.word_error_rate, result.connections) == (5, 0.2, 2)
    # Speech ends at 1.25 s and 3.0 s, and each chunk is sent the moment it is complete.
    assert result.end_delay_median_s == pytest.approx(0.875)
    assert result.end_delay_max_s == pytest.approx(1.0)
    assert (result.missing_ms, result.errors) == (70, ("so it is",))
    assert result.transcript == "One too three. Four five."


def test_late_chunk_delays_end_of_speech() -> None:
    play = Play(role("a", None, 1.0))
    row = play.board.rows["a"]
    row._sent[10] += 0.25  # the chunk from 1.0 s to 1.1 s
    assert row.end_delay(2_000, T0 + 2) == pytest.approx(0.75)
    assert row.end_delay(2_000, T0 + 2) is None  # each end of speech counts once


def test_too_recent_pause_is_not_end_of_turn() -> None:
    row = Play(role("a", None, 1.0, 2.0)).board.rows["a"]
    assert row.end_delay(2_200, T0 + 2.2) == pytest.approx(1.2)
    assert row.end_delay(3_000, T0 + 3.0) == pytest.approx(1.0)
    assert row.end_delay(4_000, T0 + 4.0) is None


def test_totals_cover_all_sessions() -> None:
    play = Play(role("a", "one two", 1.0), role("b", "three four", 1.0), role("c", None, 1.0))
    for name, transcript, end in (("a", "one two", 1.5), ("b", "three", 2.0), ("c", "five", 4.0)):
        play.start(name)
        play.turn(name, 0, transcript, end)
    total = play.summary().total
    assert (total.turns, total.words, total.connections) == (3, 4, 3)
    assert total.word_error_rate == 0.25  # of the known words
    assert total.end_delay_median_s == pytest.approx(1.0)
    assert total.end_delay_max_s == pytest.approx(3.0)


def test_no_rates_without_known_text_or_turns() -> None:
    play = Play(role("a", None))
    play.start("a")
    total = play.summary().total
    assert (total.turns, total.word_error_rate, total.end_delay_max_s) == (0, None, None)
    assert "unknown, because these files have no" in shown(closing(play.summary()), 80)


@pytest.mark.parametrize(
    ("transcript", "lost", "repeated"),
    [("one two six seven", 3, 0), ("one two three four five six three four five six seven", 0, 4)],
)
def test_missing_or_repeated_passage_fails_demo(transcript: str, lost: int, repeated: int) -> None:
    play = Play(role("a", "one two three four five six seven", 1.0), role("b", None, 1.0))
    for name in "ab":
        play.start(name)
        play.turn(name, 0, transcript, 1.5)
    summary = play.summary()
    assert not summary.complete
    assert (summary.total.words_lost, summary.total.words_repeated) == (lost, repeated)
    assert summary.sessions[1].words_lost is None  # its words are unknown
    assert f"FAILED: Words lost: {lost}, repeated: {repeated}," in shown(closing(summary), 80)


def test_board_shows_killed_provider_and_failover() -> None:
    cast = (role(name, "one two", 0.5, 2.5) for name in "abc")
    play = Play(*cast, providers=PROVIDERS)
    board = play.board
    before: dict[str, Any] = {"provider": "cartesia"}
    after: dict[str, Any] = {"provider": "flux", "connection": 2}
    for name in "ab":
        play.start(name)
        play.turn(name, 0, "one", 1.0, **before)
    play.receive(TurnStart, "a", 2.0, turn=1, **before)
    assert board.turns_with_text() == []
    play.receive(TurnUpdate, "a", 2.1, turn=1, transcript="tw", **before)
    assert board.turns_with_text() == [board.rows["a"]]
    board.on_provider_kill(T0 + 2.2)
    board.set_avoided(T0 + 2.5, avoided=False)
    board.set_avoided(T0 + 2.7, avoided=True)
    screen = shown(draw(board, T0 + 3, 100, 24), 100)
    assert "cartesia killed   flux: 0 sessions" in screen
    assert "cartesia #1" in screen
    play.receive(TurnEnd, "a", 5.0, turn=1, transcript="two", reason="model", **after)
    screen = shown(draw(board, T0 + 5, 100, 24), 100)
    assert "flux: 1 session" in screen
    assert "flux #2" in screen
    board.on_provider_back(T0 + 5.2)
    board.set_avoided(T0 + 5.3, avoided=False)
    play.start("c")
    play.turn("c", 0, "one two", 5.5, **before)
    assert "cartesia: 2 sessions" in shown(draw(board, T0 + 6, 100, 24), 100)
    assert [text for _, text in board.notices] == [
        "cartesia killed (SIGKILL) inside a turn of a",
        "the breaker of cartesia is open: new sockets go to flux",
        "a continues at flux: first event 2.8 s after the kill",
        "cartesia runs again",
        "c is at cartesia again",
    ]
    summary = play.summary()
    assert [result.providers for result in summary.sessions] == [
        ("cartesia", "flux"),
        ("cartesia",),
        ("cartesia",),
    ]
    failed = summary.fail_over
    assert failed is not None
    assert (failed.provider, failed.sessions, failed.turns) == ("cartesia", ("a",), 1)
    assert (failed.continued_after_s, failed.breaker_open_after_s) == (2.8, 0.5)
    # Speech of a ends at 2.5 s, and the turn 2.5 s later; the others end 0.5 s and 3.0 s later.
    assert failed.later_median_s == failed.later_max_s == pytest.approx(2.0)
    assert (failed.back_after_s, failed.returned) == (3.0, ("c",))
    text = " ".join(shown(closing(summary), 200).split())
    assert "Words lost: 0, repeated: 0, in passages of three or more." in text
    assert "FAILED" not in text
    assert "1 open turn moved. To turn.end" in text
    assert "2.00 s later (median), 2.00 s (max)" in text
    assert "cartesia was back after 3.0 s, and served c." in text


@pytest.mark.parametrize("moved", [False, True])
def test_failover_without_open_turn_has_no_delay(moved: bool) -> None:
    play = Play(role("a", None, 1.0), providers=PROVIDERS)
    play.start("a")
    play.turn("a", 0, "one", 1.5, provider="cartesia")
    play.board.on_provider_kill(T0 + 2)
    if moved:
        play.turn("a", 1, "two", 4.0, provider="flux", connection=2)
    failed = play.summary().fail_over
    assert failed is not None
    assert (failed.turns, failed.later_median_s, failed.breaker_open_after_s) == (0, None, None)
    assert failed.sessions == (("a",) if moved else ())
    text = " ".join(shown(closing(play.summary()), 200).split())
    assert ("no session needed another provider" in text) != moved
    assert ("The breaker of cartesia stayed closed" in text) == moved


def test_lines_name_provider_only_if_there_are_two(capsys: pytest.CaptureFixture[str]) -> None:
    play = Play(role("a", None, 1.0))
    play.start("a")
    values = {"run": "a-0", "audio_ms": 1500, "connection": 2, "provider": "flux"}
    values |= {"seq": 2, "at": 0.0, "request_id": "", "turn": 0, "reason": "model"}
    end = TurnEnd(session="a", transcript=" one", **values)  # type: ignore[arg-type]
    for providers in (PROVIDERS, PROVIDERS[:1]):
        play.board.providers = providers
        PlainLines().update(play.board, [ReceivedEvent(T0 + 1.5, b"", end)])
    both, single = capsys.readouterr().out.splitlines()
    assert both == "  1.5 s  a  turn.end        0 one  (flux, socket 2)"
    assert single == "  1.5 s  a  turn.end        0 one"


def test_board_shows_killed_worker_and_takeover() -> None:
    play = Play(role("a", "x"), role("b", "x"), role("c", "x"))
    board = play.board
    assert board.busiest() is None
    play.start("a", "worker-2")
    play.start("b", "worker-2")
    play.start("c", "worker-1")
    for session in "abc":
        play.receive(TurnStart, session, 1.0, turn=0)
    assert board.busiest() == "worker-2"
    board.on_kill("worker-2", T0 + 2)
    board.set_owner({"a-0": "worker-2", "b-0": "worker-2", "c-0": "worker-1"}, T0 + 2.5)
    board.set_owner({"a-0": "worker-1", "b-0": "worker-2", "c-0": "worker-1"}, T0 + 3)
    board.set_owner({"a-0": "worker-1", "b-0": "worker-1", "c-0": "worker-1"}, T0 + 4)
    kill = play.summary().kill
    assert kill is not None
    assert (kill.worker, kill.sessions, kill.moved_after_s) == ("worker-2", ("a", "b"), 2.0)
    assert [text for _, text in board.notices] == [
        "worker-2 killed (SIGKILL) while it owned a b",
        "worker-1 took over a, 1.0 s after the kill",
        "worker-1 took over b, 2.0 s after the kill",
    ]
    assert [result.workers for result in play.summary().sessions] == [
        ("worker-2", "worker-1"),
        ("worker-2", "worker-1"),
        ("worker-1",),
    ]


@pytest.mark.parametrize("size", [(80, 24), (120, 35), (200, 60), (60, 12)])
@pytest.mark.parametrize("sessions", [1, 2, 6, 12])
@pytest.mark.parametrize("victim", ["worker-1", "cartesia"])
def test_board_fits_its_screen(size: tuple[int, int], sessions: int, victim: str) -> None:
    width, height = size
    providers = PROVIDERS if victim == "cartesia" else PROVIDERS[:1]
    cast = (role(f"session-{number}", "x", 1.0) for number in range(sessions))
    play = Play(*cast, providers=providers)
    for name in list(play.board.rows)[: sessions - 1]:
        play.start(name)
        for number in range(5):
            text = "Ten words are said in this turn, no fewer, no more."
            play.turn(name, number, text, 3.0, provider="cartesia")
    if victim == "cartesia":
        play.board.on_provider_kill(T0 + 2)
    else:
        play.board.on_kill(victim, T0 + 2)
    play.board.set_owner({f"{name}-0": "worker-2" for name in play.board.rows}, T0 + 4)
    lines = shown(draw(play.board, T0 + 5, width, height), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, sessions + 4)
    text = "\n".join(lines)
    assert all(name in text for name in play.board.rows)
    assert f"{victim} killed" in text
    assert ("more." in text) == (sessions > 1)


def test_row_marks_eager_end_of_turn() -> None:
    play = Play(role("a", "x", 1.0))
    play.start("a")
    play.receive(TurnStart, "a", 0.5, turn=0)
    steps = [
        (TurnUpdate, {"transcript": "One"}, "One▌"),
        (TurnEagerEnd, {"transcript": "One two"}, "One two◐"),
        (TurnResume, {}, "One two◐↻▌"),
        (TurnUpdate, {"transcript": "One two three"}, "One two◐↻ three▌"),
        (TurnEnd, {"transcript": "One too three.", "reason": "model"}, "One too three. ✓0.5s"),
    ]
    for kind, values, drawn in steps:
        play.receive(kind, "a", 1.5, turn=0, **values)
        assert drawn in shown(draw(play.board, T0 + 2, 80, 24), 80)


def shown(drawing: Any, width: int) -> str:
    output = StringIO()
    Console(file=output, width=width, no_color=True).print(drawing)
    return output.getvalue()
