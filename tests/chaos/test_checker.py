"""The checker accepts only words in gaps that are old enough as missing, and only known texts."""

from collections.abc import Sequence
from typing import Any

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
    TurnUpdate,
)
from tests.chaos.plan import ChaosPlan
from worker.bench.checker import Appended, Expected, Span, violations
from worker.local.emulator.engines.script_text import REWORDABLE, STYLES

SAID = Expected(
    session="s",
    words=6,
    spans=tuple(Span(200.0 * word, 200.0 * (word + 1)) for word in range(6)),
    chunks=tuple(Appended(100.0 * nth, 100_000 + 100 * nth) for nth in range(1, 13)),
    max_lag_s=5.0,
)
END: SessionEndReason = "end"

COMMON = {
    "session": "s",
    "run": "1-0",
    "provider": "cartesia",
    "request_id": "",
    "connection": 1,
}


def _events(first: str, gap: tuple[int, int] | None, second: str, at: float) -> list[Event]:
    """Publish two turns with a gap between them, from and to a millisecond."""
    common = {**COMMON, "at": at}
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


def _wrong_texts(style: str, *texts: str, first: str = "cartesia") -> list[str]:
    """Return the details of wrong texts, of a turn that grew through these and ended.

    It starts at the provider `first`, and continues at Cartesia.
    """
    common: dict[str, Any] = {**COMMON, "seq": 1, "at": 0.0, "audio_ms": 0, "turn": 0}
    *updates, last = texts
    events: list[Event] = [TurnStart(**common | {"provider": first})]
    events += [TurnUpdate(transcript=text, **common) for text in updates]
    events.append(TurnEnd(transcript=last, reason="model", **common))
    said = Expected(session="s", words=2, style=STYLES[style])
    return [each.detail for each in violations(said, events) if each.rule == "text"]


@pytest.mark.parametrize("name", STYLES)
def test_checker_accepts_texts_of_the_style(name: str) -> None:
    style = STYLES[name]
    for begin in {style.begin, style.later}:
        texts = [style.text(words, begin) for words in (["w0"], ["w0", "w1"], ["w0", "w1"])]
        assert _wrong_texts(name, *texts) == []


@pytest.mark.parametrize(
    ("style", "texts"),
    [
        ("leading", ("w0", "w0  w1")),
        ("leading", ("w0", "w0 w1 ")),
        ("leading", ("w0", "w0\u00a0w1")),
        ("trailing", ("w0 ", "w0 w1")),
        ("trailing", ("w0 ", "w0  ", "w0 w1 ")),
        ("trailing", ("w0 ", "w0 ", "w0 w1 ")),
        ("lines", ("w0", "w0 w1")),
        ("no-break", ("w0", "w0 w1")),
        ("none", ("w0", "w0 w1")),
    ],
)
def test_checker_rejects_other_texts(style: str, texts: tuple[str, ...]) -> None:
    assert _wrong_texts(style, *texts)


@pytest.mark.parametrize(
    ("provider", "last", "shrunk"),
    [
        ("cartesia", "w0 1", True),
        ("flux", "w0 1", False),
        ("flux", "w0 w1", True),
        ("flux", "w0 w1 ", False),
    ],
)
def test_only_flux_revises_the_last_text(provider: str, last: str, shrunk: bool) -> None:
    common: dict[str, Any] = {**COMMON, "seq": 1, "at": 0.0, "audio_ms": 0, "turn": 0}
    events: list[Event] = [
        TurnStart(**common),
        TurnUpdate(transcript="w0 w1 ", **common),
        TurnEnd(transcript=last, reason="model", **common | {"provider": provider}),
    ]
    found = violations(Expected(session="s", words=2), events)
    assert ("shrunk" in {each.rule for each in found}) is shrunk


def test_turn_that_began_at_flux_keeps_its_white_space() -> None:
    texts = ("w0", "w0 w1", "w0 w1")
    assert _wrong_texts("lines", *texts)
    assert not _wrong_texts("lines", *texts, first="flux")


def test_text_style_depends_on_the_seed() -> None:
    assert {ChaosPlan(seed=seed).text_style_name for seed in range(200)} == set(STYLES)
    reworded = {ChaosPlan(seed=seed, rewording=True).text_style_name for seed in range(200)}
    assert reworded == set(REWORDABLE)
    assert ChaosPlan(text_style="tabs").text_style_name == "tabs"
