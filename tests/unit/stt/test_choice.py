"""Which providers may serve a session, in which order, and the line that refuses it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.audio import SessionEntry
from schemas.pcm import Encoding
from schemas.validation import EntryError
from worker.core.breaker import BreakerState
from worker.settings import PROVIDERS, Settings
from worker.stt.choice import Candidate, candidates, in_order, primary_language
from worker.stt.offers import MODELS, Offer, offers

CARTESIA, FLUX = offers(Settings())["cartesia"], offers(Settings())["flux"]
BOTH = (CARTESIA, FLUX)
INK = Candidate("cartesia", "ink-2")
ENGLISH = Candidate("flux", "flux-general-en")
MULTI_EN = Candidate("flux", "flux-general-multi", "en")
GERMAN = Candidate("flux", "flux-general-multi", "de")


def session(**fields: object) -> SessionEntry:
    given = {"encoding": Encoding.PCM_S16LE, "sample_rate": 16_000, **fields}
    return SessionEntry(session="call-1", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, [INK, ENGLISH]),
        ({"language": "en"}, [INK, ENGLISH]),
        ({"language": "EN-us"}, [INK, ENGLISH]),
        ({"language": "de"}, [GERMAN]),
        ({"language": "De-ch-1996"}, [GERMAN]),
        ({"provider": "flux"}, [ENGLISH]),
        ({"providers": ("flux", "cartesia")}, [ENGLISH, INK]),
        ({"providers": ("flux", "flux", "cartesia")}, [ENGLISH, INK]),
        ({"providers": ("cartesia",)}, [INK]),
        ({"provider": "flux", "providers": ("cartesia", "flux")}, [ENGLISH, INK]),
        (
            {"providers": ("cartesia", "flux"), "language": "nl"},
            [GERMAN._replace(language_hint="nl")],
        ),
        ({"model": "ink-2"}, [INK, ENGLISH]),
        ({"model": "flux-general-en"}, [ENGLISH, INK]),
        ({"model": "flux-general-multi"}, [Candidate("flux", "flux-general-multi"), INK]),
        ({"model": "flux-general-multi", "language": "en"}, [MULTI_EN, INK]),
        ({"model": "flux-general-multi", "language": "de"}, [GERMAN]),
        ({"model": "flux-general-en", "providers": ("cartesia", "flux")}, [INK, ENGLISH]),
        ({"model": "ink-9"}, [Candidate("cartesia", "ink-9"), ENGLISH]),
        ({"model": "ink-9", "language": "de"}, [Candidate("cartesia", "ink-9"), GERMAN]),
        ({"model": "flux-9", "provider": "flux"}, [Candidate("flux", "flux-9")]),
        ({"sample_rate": 22_050}, [INK]),
        ({"sample_rate": 22_050, "model": "flux-general-en"}, [INK]),
        ({"encoding": Encoding.PCM_MULAW, "sample_rate": 8_000}, [INK, ENGLISH]),
    ],
)
def test_candidates_of_a_session(fields: dict[str, object], chosen: list[Candidate]) -> None:
    assert candidates(session(**fields), BOTH) == chosen


def test_configured_models_come_first() -> None:
    settings = Settings(stt_model="ink-9", stt_flux_model="flux-general-multi")
    own = [*offers(settings).values()]
    assert candidates(session(), own) == [
        Candidate("cartesia", "ink-9"),
        Candidate("flux", "flux-general-multi"),
    ]
    assert candidates(session(language="en"), own)[1] == MULTI_EN
    assert candidates(session(model="flux-general-en"), own)[0] == ENGLISH
    assert candidates(session(model="ink-2"), own)[0] == INK


MULTI = "en, es, fr, de, hi, ru, pt, ja, it, nl"
ONE_RATE = Offer("flux", ("flux-general-en",), (Encoding.PCM_S16LE,), (16_000,))


@pytest.mark.parametrize(
    ("fields", "own", "field", "message"),
    [
        (
            {"language": "xx"},
            BOTH,
            "language",
            f"no provider of this session speaks it; cartesia speaks en; flux speaks {MULTI}",
        ),
        (
            {"language": "de", "model": "flux-general-en"},
            BOTH,
            "language",
            "no provider of this session speaks it; flux speaks en; cartesia speaks en",
        ),
        (
            {"language": "de", "provider": "cartesia"},
            BOTH,
            "language",
            "no provider of this session speaks it; cartesia speaks en",
        ),
        (
            {"sample_rate": 22_050, "provider": "flux"},
            BOTH,
            "sample_rate",
            "no provider of this session takes it; flux takes 8000, 16000, 24000, 44100, 48000",
        ),
        (
            {"encoding": Encoding.PCM_ALAW},
            [ONE_RATE],
            "encoding",
            "no provider of this session takes it; flux takes pcm_s16le",
        ),
        (
            {"model": "flux-general-en"},
            [CARTESIA],
            "model",
            "no provider of this session has it; cartesia has ink-2",
        ),
        (
            {"model": "ink-2", "providers": ("flux",)},
            BOTH,
            "model",
            "no provider of this session has it; flux has flux-general-en, flux-general-multi",
        ),
        ({"provider": "flux"}, [CARTESIA], "provider", "is not configured; configured: cartesia"),
        (
            {"providers": ("flux",)},
            [CARTESIA],
            "providers",
            "is not configured; configured: cartesia",
        ),
        (
            {"provider": "flux", "providers": ("cartesia",)},
            [CARTESIA],
            "provider",
            "is not configured; configured: cartesia",
        ),
    ],
)
def test_refusal_lists_what_is_available(
    fields: dict[str, object], own: Sequence[Offer], field: str, message: str
) -> None:
    with pytest.raises(EntryError) as caught:
        candidates(session(**fields), own)
    assert (caught.value.field, caught.value.message) == (field, message)
    assert caught.value.reason == ("encoding" if field == "encoding" else "malformed")


def test_provider_that_is_not_configured_is_left_out_of_a_list() -> None:
    assert candidates(session(providers=("flux", "cartesia")), [CARTESIA]) == [INK]


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ({}, [INK, ENGLISH]),
        ({"cartesia": BreakerState.OPEN}, [ENGLISH, INK]),
        ({"cartesia": BreakerState.PROBING}, [ENGLISH, INK]),
        ({"cartesia": BreakerState.PROBE_DUE}, [INK, ENGLISH]),
        ({"cartesia": BreakerState.OPEN, "flux": BreakerState.OPEN}, [INK, ENGLISH]),
        ({"flux": BreakerState.OPEN}, [INK, ENGLISH]),
    ],
)
def test_open_breakers_come_last(states: dict[str, BreakerState], chosen: list[Candidate]) -> None:
    assert in_order([INK, ENGLISH], states) == chosen


sessions = st.builds(
    session,
    encoding=st.sampled_from(Encoding),
    sample_rate=st.sampled_from([8_000, 11_025, 16_000, 48_000, 192_000]),
    provider=st.none() | st.sampled_from(PROVIDERS),
    providers=st.lists(st.sampled_from(PROVIDERS), max_size=3).map(tuple),
    model=st.none() | st.sampled_from([*MODELS, "unknown"]),
    language=st.none() | st.sampled_from(["en", "en-GB", "DE", "nl-BE", "xx", "hi-Deva-IN"]),
)


@given(sessions, st.lists(st.sampled_from(BOTH), min_size=1, unique=True))
def test_candidates_take_what_the_session_sends(entry: SessionEntry, own: list[Offer]) -> None:
    try:
        chosen = candidates(entry, own)
    except EntryError as error:
        assert "\n" not in error.message  # noqa: PT017
        return
    assert len({each.provider for each in chosen}) == len(chosen) > 0
    named = {entry.provider, *entry.providers} - {None}
    by_name = {offer.provider: offer for offer in own}
    for provider, model, hint in chosen:
        offer = by_name[provider]
        assert not named or provider in named
        assert not offer.rates or entry.sample_rate in offer.rates
        language = primary_language(entry.language or "")
        if language and model in MODELS:
            assert language in MODELS[model].languages
        assert hint in {"", language}
        assert model in offer.models or model == entry.model
