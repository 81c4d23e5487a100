"""The page about providers matches what the code knows of them."""

import re

from tests.docs.pages import section
from worker.core import breaker
from worker.core.failover import MIN_STAY_S
from worker.settings import KEY_NAMES, PROVIDERS, Settings
from worker.stt.offers import MODELS, offers


def _row(name: str) -> list[str]:
    text = section("providers.md", "What each provider takes")
    found = re.search(rf"^\| ?{name} ?\| (.+) \|$", text, re.MULTILINE)
    assert found, name
    return found[1].split(" | ")


def test_providers_have_columns() -> None:
    assert _row("") == [f"`{name}`" for name in PROVIDERS]


def test_models_and_languages_are_listed() -> None:
    known = [offer.models for offer in offers(Settings()).values()]
    assert _row("models") == [", ".join(f"`{model}`" for model in models) for models in known]
    assert _row("languages") == [
        "; ".join(f"`{model}`: {', '.join(MODELS[model].languages)}" for model in models)
        for models in known
    ]


def test_sample_rates_are_listed() -> None:
    rates = [", ".join(map(str, offer.rates)) or "any" for offer in offers(Settings()).values()]
    assert _row("sample rates, Hz") == rates


def test_sources_of_keys_are_listed() -> None:
    text = section("providers.md", "Keys")
    for provider, names in KEY_NAMES.items():
        assert f"| `{provider}` | `{names.variable}` | `{names.file_variable}`" in text


def test_numbers_of_failover_and_breaker_match() -> None:
    text = " ".join(section("providers.md", "The breaker").split())
    for phrase in (
        f"after {breaker.MAX_FAILURES} failures within {breaker.WINDOW_S:g} s",
        f"At most {breaker.MAX_SESSION_FAILURES} of one session count",
        f"After {breaker.FIRST_PROBE_S:g} s one session",
        f"up to {breaker.MAX_PROBE_S:g} s",
        f"varies by {breaker.JITTER:.0%}".replace("%", " %"),
        f"without a result for {breaker.PROBE_LEASE_S:g} s",
    ):
        assert phrase in text
    text = section("providers.md", "Failover")
    assert f"`TURNBUS_STT_FAILOVER_S` ({Settings().stt_failover_s:g} s)" in text
    assert f"\n{MIN_STAY_S:g} s after its last move" in text
