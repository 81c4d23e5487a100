"""The checker accepts a missing word only inside a gap that is old enough."""

from collections.abc import Sequence

import msgspec
import pytest

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionEndReason,
    SessionStarted,
    TurnEnd,
    TurnStart,
)
from worker.bench.checker import Appended, Expected, Span, violations

SAID = Expected(
    session="s",
    words=6,
    spans=tuple(Span(200.0 * word, 200.0 * (word + 1)) for word in range(6)),
    chunks=tuple(Appended(100.0 * nth, 100_000 + 100 * nth) for nth in range(1, 13)),
    max_lag_s=5.0,
)
END: SessionEndReason = "end"


def _events(first: str, gap: tuple[int, int] | None, second: str, at: float) -> list[Event]:
    """Publish two turns with a gap between them, from and to a millisecond."""
    common = {
        "session": "s",
        "run": "1-0",
        "provider": "cartesia",
        "request_id": "",
        "connection": 1,
        "at": at,
    }
    made: list[Event] = []

    def add(kind: type[Event], audio_ms: int, **fields: object) -> None:
        written = {**common, "seq": len(made) + 1, "audio_ms": audio_ms, **fields}
        made.append(msgspec.convert(written | {"type": kind.__struct_config__.tag}, kind))

    started = {"worker": "w", "metadata": {}, "encoding": "pcm_s16le", "sample_rate": 16_000}
    add(SessionStarted, 0, **started)
    for turn, text in enumerate((first, second)):
        add(TurnStart, 0, turn=turn)
        add(TurnEnd, 0, turn=turn, transcript=text, reason="close")
        if gap is not None and turn == 0:
            begin, end = gap
            add(AudioGap, end, missing_ms=end - begin, reason="backlog")
    add(SessionEnded, 0, reason=END, turns=2)
    return made


@pytest.mark.parametrize(
    ("first", "gap", "second", "at", "broken"),
    [
        ("w0 w1 w2", None, "w3 w4 w5", 200.0, []),
        ("w0 w1", (400, 800), "w4 w5", 200.0, []),
        ("w0 w1 !2", (500, 700), "!? w4 w5", 200.0, []),
        # One millisecond of a word was sent before a gap, and one after it.
        ("w0 w1 !?", (401, 799), "!? w4 w5", 200.0, []),
        ("w0 w1", (400, 600), "w4 w5", 200.0, ["lost"]),
        ("w0 w1 w2", (400, 800), "w4 w5", 200.0, ["reported"]),
        ("w0 w1 w2", (0, 600), "w3 w4 w5", 200.0, ["reported"] * 3),
        ("w0 w1", (400, 800), "w3 w4 w5", 200.0, ["reported"]),
        ("w0 w1 !2", (650, 800), "!3 w4 w5", 200.0, ["damaged", "lost"]),
        # Audio that was four seconds old is announced as too late.
        ("w0 w1", (400, 800), "w4 w5", 104.8, ["reported"]),
        # More than there was is announced.
        ("w0 w1 w2", (600, 1_300), "", 200.0, ["reported"]),
        ("w0 w1 w2", None, "w2 w3 w4 w5", 200.0, ["repeated"]),
    ],
)
def test_missing_word_requires_a_gap(
    first: str, gap: tuple[int, int] | None, second: str, at: float, broken: Sequence[str]
) -> None:
    found = violations(SAID, _events(first, gap, second, at))
    assert sorted(violation.rule for violation in found) == list(broken)


def test_gap_is_rejected_without_max_lag() -> None:
    said = msgspec.structs.replace(SAID, max_lag_s=0.0)
    found = violations(said, _events("w0 w1", (400, 800), "w4 w5", 200.0))
    assert [violation.rule for violation in found] == ["reported"]
