"""What each provider takes, as data: models with their languages, encodings and sample rates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.pcm import Encoding
from worker.settings import Settings

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "ink-2": ("en",),
    "flux-general-en": ("en",),
    "flux-general-multi": ("en", "es", "fr", "de", "hi", "ru", "pt", "ja", "it", "nl"),
}
"""Languages of the known models, as primary subtags of BCP 47. Those of another model are unknown:
its provider decides."""

OWNERS: Mapping[str, str] = {
    "ink-2": "cartesia",
    "flux-general-en": "flux",
    "flux-general-multi": "flux",
}
"""Providers of the known models."""

HINTED_MODELS = frozenset({"flux-general-multi"})
"""Models that take the language of a session as a hint."""


@dataclass(frozen=True)
class Offer:
    """What one provider takes."""

    provider: str
    models: tuple[str, ...]
    """Names of its models; the first is for sessions that name neither a model nor a language."""
    encodings: tuple[Encoding, ...]
    rates: tuple[int, ...] = ()
    """Sample rates in Hz; empty: any."""


def offers(settings: Settings) -> dict[str, Offer]:
    """Return what each provider takes with these settings.

    Flux takes four of the encodings as they are; the worker converts the others for it.
    """
    flux_models = (settings.stt_flux_model, "flux-general-en", "flux-general-multi")
    return {
        "cartesia": Offer("cartesia", (settings.stt_model,), tuple(Encoding)),
        "flux": Offer(
            "flux",
            tuple(dict.fromkeys(flux_models)),
            tuple(Encoding),
            (8_000, 16_000, 24_000, 44_100, 48_000),
        ),
    }


def spoken_languages(models: Iterable[str]) -> tuple[str, ...]:
    """Return the languages that these models are known to speak."""
    return tuple(dict.fromkeys(each for model in models for each in LANGUAGES.get(model, ())))
