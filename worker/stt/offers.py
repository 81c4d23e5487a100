"""What each provider takes, as data: models with their languages, encodings and sample rates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from schemas.pcm import Encoding
from worker.settings import Settings


class Model(NamedTuple):
    """A known model."""

    provider: str
    languages: tuple[str, ...]
    """Primary subtags of BCP 47."""
    takes_hint: bool = False
    """Whether the language of a session is sent to it as a hint."""


MODELS: Mapping[str, Model] = {
    "ink-2": Model("cartesia", ("en",)),
    "flux-general-en": Model("flux", ("en",)),
    "flux-general-multi": Model(
        "flux", ("en", "es", "fr", "de", "hi", "ru", "pt", "ja", "it", "nl"), takes_hint=True
    ),
}
"""The known models. The languages of another model are unknown: its provider decides."""


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
    known = (MODELS[model].languages for model in models if model in MODELS)
    return tuple(dict.fromkeys(chain.from_iterable(known)))
