"""How a worker reaches each configured provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.settings import Settings
from worker.stt.cartesia import CARTESIA
from worker.stt.choice import Candidate
from worker.stt.flux import FLUX
from worker.stt.keys import ApiKey
from worker.stt.offers import Offer, offers
from worker.stt.provider import Endpoint, Provider
from worker.stt.proxy import Proxy, find_proxy

PROVIDERS: Mapping[str, Provider] = {each.name: each for each in (CARTESIA, FLUX)}


@dataclass(frozen=True)
class Route:
    """A provider with its address, its key and the proxy to it."""

    provider: Provider
    offer: Offer
    """What it takes with these settings."""
    url: str
    version: str = ""
    key: ApiKey = field(repr=False, kw_only=True)
    proxy: Proxy | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> Endpoint:
        """Return where to connect now; the key may have changed since the last connect."""
        return Endpoint(self.url, self.version, self.key.current(), self.proxy)


class Choice(NamedTuple):
    """A provider that may serve a session, and what to ask it for."""

    route: Route
    candidate: Candidate

    @property
    def name(self) -> str:
        """Name of the provider."""
        return self.candidate.provider


def find_routes(
    settings: Settings, keys: Mapping[str, ApiKey], env: Mapping[str, str]
) -> Sequence[Route]:
    """Return the routes to the providers that have a key, the preferred one first.

    Raises `SettingsError` if the environment names a proxy that cannot be used.
    """
    addresses = {
        "cartesia": (settings.stt_url, settings.stt_version),
        "flux": (settings.stt_flux_url, ""),
    }
    offered = offers(settings)
    routes = []
    for name in settings.providers:
        if name in keys:
            url, version = addresses[name]
            proxy = find_proxy(url, env)
            routes.append(
                Route(PROVIDERS[name], offered[name], url, version, key=keys[name], proxy=proxy)
            )
    return routes
