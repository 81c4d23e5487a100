"""The checker compares texts with the separators of the provider."""

import pytest

from schemas.turns import Event, TurnEnd, TurnStart, TurnUpdate
from tests.chaos.plan import ChaosPlan
from worker.bench.checker import Expected, violations
from worker.local.emulator.engines.script_text import REWORDABLE, STYLES


def _broken(style: str, *texts: str) -> list[str]:
    """Return the details of wrong texts, of a turn that grew through these and ended."""
    common = {
        "session": "s",
        "run": "1-0",
        "seq": 1,
        "at": 0.0,
        "audio_ms": 0,
        "provider": "p",
        "request_id": "r",
        "connection": 1,
        "turn": 0,
    }
    *updates, last = texts
    events: list[Event] = [TurnStart(**common)]  # type: ignore[arg-type]
    events += [TurnUpdate(transcript=text, **common) for text in updates]  # type: ignore[arg-type]
    events.append(TurnEnd(transcript=last, reason="model", **common))  # type: ignore[arg-type]
    said = Expected(session="s", words=2, style=STYLES[style])
    return [each.detail for each in violations(said, events) if each.rule == "text"]


@pytest.mark.parametrize("name", STYLES)
def test_checker_accepts_texts_of_the_style(name: str) -> None:
    style = STYLES[name]
    for begin in {style.begin, style.later}:
        texts = [style.text(words, begin) for words in (["w0"], ["w0", "w1"], ["w0", "w1"])]
        assert _broken(name, *texts) == []


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
    assert _broken(style, *texts)


def test_text_style_depends_on_the_seed() -> None:
    assert {ChaosPlan(seed=seed).text_style_name for seed in range(200)} == set(STYLES)
    reworded = {ChaosPlan(seed=seed, rewording=True).text_style_name for seed in range(200)}
    assert reworded == set(REWORDABLE)
    assert ChaosPlan(text_style="tabs").text_style_name == "tabs"
