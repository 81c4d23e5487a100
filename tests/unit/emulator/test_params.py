"""Query parameters: ranges, order of the merged thresholds, spelling of numbers and keyterms."""

from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from worker.local.emulator.engines.base import AudioFormat, TurnSettings
from worker.local.emulator.messages import ClientFault
from worker.local.emulator.upgrade import Params, Upgrade, parse_params

REQUIRED = "model=ink-2&encoding=pcm_s16le&sample_rate=16000"


def parsed(extra: str = "", base: str = REQUIRED) -> Params:
    upgrade = Upgrade(f"/stt/turns/websocket?{base}&{extra}", Headers())
    return parse_params(upgrade.query, TurnSettings(), ["ink-2"])


def refused(extra: str, base: str = REQUIRED) -> str:
    with pytest.raises(ClientFault) as fault:
        parsed(extra, base)
    assert fault.value.problem.status == 400
    return fault.value.problem.title


def test_omitted_parameters_have_defaults() -> None:
    assert parsed() == Params("ink-2", AudioFormat("pcm_s16le", 16000), TurnSettings(), ())
    assert TurnSettings() == TurnSettings(start=0.8, eager_end=0.6, end=0.3, end_timeout_ms=5600)


@pytest.mark.parametrize(
    ("extra", "field", "value"),
    [
        ("turn_end_timeout_ms=5600.0", "end_timeout_ms", 5600.0),
        ("turn_end_timeout_ms=640", "end_timeout_ms", 640.0),
        ("turn_end_timeout_ms=11200", "end_timeout_ms", 11200.0),
        ("turn_end_timeout_ms=1e3", "end_timeout_ms", 1000.0),
        ("turn_start_threshold=0.9", "start", 0.9),
        ("turn_eager_end_threshold=0.79", "eager_end", 0.79),
        ("turn_end_threshold=0.05", "end", 0.05),
        ("turn_end_threshold=0.2&turn_end_threshold=0.1", "end", 0.1),
    ],
)
def test_numbers_are_parsed(extra: str, field: str, value: float) -> None:
    assert getattr(parsed(extra).turn, field) == value


@pytest.mark.parametrize(
    "extra",
    [
        "turn_start_threshold=0.49",
        "turn_start_threshold=0.91",
        "turn_eager_end_threshold=0.81&turn_start_threshold=0.9",
        "turn_eager_end_threshold=0.29&turn_end_threshold=0.1",
        "turn_end_threshold=0.04",
        "turn_end_threshold=0.51",
        "turn_end_timeout_ms=639.9",
        "turn_end_timeout_ms=11201",
        "turn_eager_end_threshold=0.8",  # not below the default start
        "turn_start_threshold=0.6",  # not above the default eager_end
        "turn_eager_end_threshold=0.3",  # not above the default end
        "turn_end_threshold=0.5&turn_eager_end_threshold=0.5",
        "turn_end_threshold=nan",
        "turn_end_threshold=1e999",
        "turn_end_threshold=0,2",
        "turn_end_threshold=",
    ],
)
def test_wrong_thresholds_are_refused(extra: str) -> None:
    assert refused(extra) == "Invalid turn thresholds"


@pytest.mark.parametrize(
    ("base", "title"),
    [
        ("encoding=pcm_s16le&sample_rate=16000", "Invalid model"),
        ("model=ink-whisper&encoding=pcm_s16le&sample_rate=16000", "Invalid model"),
        ("model=ink-2-latest&encoding=pcm_s16le&sample_rate=16000", "Invalid model"),
        ("model=ink-2&sample_rate=16000", "Invalid encoding"),
        ("model=ink-2&encoding=ogg-opus&sample_rate=16000", "Invalid encoding"),
        ("model=ink-2&encoding=pcm_s16le", "Invalid sample rate"),
        ("model=ink-2&encoding=pcm_s16le&sample_rate=7999", "Invalid sample rate"),
        ("model=ink-2&encoding=pcm_s16le&sample_rate=192001", "Invalid sample rate"),
        ("model=ink-2&encoding=pcm_s16le&sample_rate=16k", "Invalid sample rate"),
        ("model=ink-2&encoding=pcm_s16le&sample_rate=16000.5", "Invalid sample rate"),
    ],
)
def test_wrong_model_and_audio_are_refused(base: str, title: str) -> None:
    assert refused("", base) == title


def test_dated_models_and_unknown_parameters_are_accepted() -> None:
    base = REQUIRED.replace("ink-2", "ink-2-2026-09-01")
    assert parsed("language=en&x=1", base).model == "ink-2-2026-09-01"


@pytest.mark.parametrize("spell", [quote, quote_plus])
@given(terms=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=100))
def test_keyterms_are_decoded_exactly(spell: Callable[[str], str], terms: list[str]) -> None:
    assert parsed("&".join(f"keyterm={spell(term)}" for term in terms)).keyterms == tuple(terms)


@pytest.mark.parametrize(
    ("count", "length", "fits"),
    [(100, 12, True), (101, 1, False), (12, 100, True), (1, 1201, False)],
)
def test_keyterms_have_limits(count: int, length: int, *, fits: bool) -> None:
    extra = "&".join(["keyterm=" + "x" * length] * count)
    if fits:
        assert len(parsed(extra).keyterms) == count
    else:
        assert refused(extra) == "Invalid keyterms"
