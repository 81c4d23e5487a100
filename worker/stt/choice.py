"""Which providers may serve a session, and in which order.

A session may name a provider, a list of providers, a model and a language. The settings decide
what it does not name. On failover it stays among the providers that are chosen here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from schemas.audio import SessionEntry
from schemas.validation import EntryError, Reason
from worker.core.breaker import BreakerState
from worker.stt.offers import MODELS, Offer, spoken_languages


class Candidate(NamedTuple):
    """A provider that may serve the session, and what to ask it for."""

    provider: str
    model: str
    language_hint: str = ""
    """Language to name to the model; empty if it takes no hint, or the session names none."""


def candidates(entry: SessionEntry, offers: Sequence[Offer]) -> list[Candidate]:
    """Return the providers that may serve a session, the preferred one first.

    `offers` are those of the configured providers, in their order. Raises `EntryError` with one
    line that lists what is available, if no provider may serve the session.
    """
    named = _named(entry, offers)
    takers = [offer for offer in named if entry.encoding in offer.encodings]
    if not takers:
        raise _refusal("encoding", "takes", {each.provider: each.encodings for each in named})
    at_rate = [each for each in takers if not each.rates or entry.sample_rate in each.rates]
    if not at_rate:
        raise _refusal("sample_rate", "takes", {each.provider: each.rates for each in takers})
    models = _models(entry, named, at_rate)
    language = primary_language(entry.language or "")
    chosen = [
        Candidate(provider, model, language if _takes_hint(model) else "")
        for provider, choice in models.items()
        if (model := _speaker(language, choice)) is not None
    ]
    if not chosen:
        spoken = {provider: spoken_languages(choice) for provider, choice in models.items()}
        raise _refusal("language", "speaks", spoken)
    return chosen


def in_order(chosen: Sequence[Candidate], states: Mapping[str, BreakerState]) -> list[Candidate]:
    """Return the candidates with those at the end whose breaker is open.

    A provider that this worker may probe keeps its place, and its session has to take the probe.
    """
    avoided = (BreakerState.OPEN, BreakerState.PROBING)
    return sorted(chosen, key=lambda candidate: states.get(candidate.provider) in avoided)


def primary_language(tag: str) -> str:
    """Return the primary subtag of a BCP 47 tag in lower case: `en` of `en-US`."""
    return tag.partition("-")[0].lower()


def _named(entry: SessionEntry, offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers of the providers that the session names, in its order.

    Without such names these are all, and a model that some of them have puts those first.
    """
    wanted = [*dict.fromkeys(filter(None, (entry.provider, *entry.providers)))]
    if not wanted:
        return sorted(offers, key=lambda offer: entry.model not in (None, *offer.models))
    by_name = {offer.provider: offer for offer in offers}
    named = [by_name[name] for name in wanted if name in by_name]
    if not named or entry.provider not in (None, named[0].provider):
        field = "provider" if entry.provider else "providers"
        raise EntryError(field, f"is not configured; configured: {', '.join(by_name)}")
    return named


def _models(
    entry: SessionEntry, named: Sequence[Offer], fitting: Sequence[Offer]
) -> dict[str, tuple[str, ...]]:
    """Return the models that may serve the session at each fitting provider, in order.

    The session's model is for the providers that have it. If none is known to have it, it is for
    the first one, which may have newer models. The others serve the session with their own. Raises
    `EntryError` if the model is known to be another provider's.
    """
    if entry.model is None:
        return {offer.provider: offer.models for offer in fitting}
    owners = [offer for offer in named if entry.model in offer.models]
    if not owners and entry.model in MODELS:
        owners = [offer for offer in named if offer.provider == MODELS[entry.model].provider]
        if not owners:
            raise _refusal("model", "has", {each.provider: each.models for each in named})
    owners = owners or [*named[:1]]
    return {
        offer.provider: (entry.model,) if offer in owners else offer.models for offer in fitting
    }


def _speaker(language: str, models: Iterable[str]) -> str | None:
    """Return the first model that speaks a language; any model does if none is named."""
    for model in models:
        if not language or model not in MODELS or language in MODELS[model].languages:
            return model
    return None


def _takes_hint(model: str) -> bool:
    return model in MODELS and MODELS[model].takes_hint


def _refusal(field: str, verb: str, available: Mapping[str, Sequence[str | int]]) -> EntryError:
    lists = (
        f"{provider} {verb} {', '.join(map(str, each)) or 'any'}"
        for provider, each in available.items()
    )
    reason: Reason = "encoding" if field == "encoding" else "malformed"
    return EntryError(field, f"no provider of this session {verb} it; {'; '.join(lists)}", reason)
