"""What differs between the providers that the local STT server emulates; see `base`."""

from worker.local.emulator.providers.base import Provider
from worker.local.emulator.providers.cartesia import CartesiaProvider
from worker.local.emulator.providers.flux import FluxProvider
from worker.local.emulator.settings import ServerSettings


def provider_of(settings: ServerSettings) -> Provider:
    """Return the provider that the settings name."""
    return FluxProvider(settings) if settings.provider == "flux" else CartesiaProvider(settings)
