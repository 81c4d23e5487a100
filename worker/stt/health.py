"""Outages of the STT provider and rejected keys; a worker logs each once, not for every session."""

import logging
import time
from collections.abc import Sequence

import anyio

from worker.errors import SttError
from worker.settings import KEY_NAMES
from worker.text import pluralize

log = logging.getLogger(__name__)

OUTAGE_LOG_AFTER_S = 3.0
"""Minimum time without a successful connect that counts as an outage: one failure does not."""

OUTAGE_OVER_AFTER_S = 60.0
"""Maximum time between failed attempts of one outage."""

CREDENTIALS_RETRY_S = 15.0
"""Delay after a rejected key before a worker without sessions tries it again."""

MAX_CONCURRENT_CONNECTS = 50
"""Maximum concurrent handshakes with one STT provider.

A thousand sessions may start, or lose their sockets, at once. A handshake takes milliseconds of
CPU, mostly for TLS: fifty together hardly delay the running sessions. A server with the usual
listen backlog of 100 drops no packets, which would be resent a second later. At 300 ms each, fifty
concurrent handshakes open 160 sessions a second.
"""


class ProviderOutage:
    """Whether the provider accepts connections; times are on the monotonic clock."""

    def __init__(self, subject: str = "the STT provider") -> None:
        """`subject` names the provider in log lines."""
        self._subject = subject
        self._since: float | None = None
        self._failed_at = 0.0
        self._logged = False
        self._waiting: set[str] = set()

    def connect_failed(self, session: str, error: SttError, now: float) -> None:
        """Record a failed connect that will be retried."""
        if self._since is None or now - self._failed_at > OUTAGE_OVER_AFTER_S:
            self._since, self._logged = now, False
            self._waiting.clear()
        self._failed_at = now
        self._waiting.add(session)
        if not self._logged and now - self._since >= OUTAGE_LOG_AFTER_S:
            self._logged = True
            log.warning(
                "%s accepted no connection for %.0f s (%s); no session is lost",
                self._subject,
                now - self._since,
                error,
            )

    def connected(self, now: float) -> None:
        """Record a successful connect."""
        if self._logged and self._since is not None:
            log.warning(
                "%s accepts connections again after %.1f s; %s waited",
                self._subject,
                now - self._since,
                pluralize(len(self._waiting), "session"),
            )
        self._since, self._logged = None, False
        self._waiting.clear()


class CredentialsHealth:
    """Whether the provider accepts the API key; logged once, not for every session."""

    def __init__(self, provider: str) -> None:
        key = KEY_NAMES[provider]
        self._provider = provider
        self._advice = f"check {key.variable} or {key.file_variable}, and the account's credit"
        self.reason: str | None = None
        """Why the provider rejects the key or the credit; None while it accepts them."""
        self._since = 0.0

    def rejected(self, error: SttError) -> None:
        """Record a 401, 402 or 403."""
        if self.reason is None:
            what = "cannot be reached" if error.advice else "rejects the API key or its credit"
            log.error(
                "provider %s: %s (%s); no session is lost; %s",
                *(self._provider, what, error, error.advice or self._advice),
            )
        self.reason = str(error)
        self._since = time.monotonic()

    def retry_after_rejection(self) -> None:
        """Clear an old rejection, so that a session may try again."""
        if self.reason is not None and time.monotonic() - self._since > CREDENTIALS_RETRY_S:
            self.reason = None

    def accepted(self) -> None:
        """Record a successful connection."""
        if self.reason is not None:
            log.info("provider %s: connected again", self._provider)
        self.reason = None


class ProviderHealth:
    """What a worker knows about one provider, and its limit of handshakes."""

    def __init__(self, provider: str, subject: str) -> None:
        self.credentials = CredentialsHealth(provider)
        self.outage = ProviderOutage(subject)
        self.connect_slots = anyio.CapacityLimiter(MAX_CONCURRENT_CONNECTS)


def provider_health(providers: Sequence[str]) -> dict[str, ProviderHealth]:
    """Return the health of each provider. Log lines name a provider if there are several."""
    several = len(providers) > 1
    return {
        name: ProviderHealth(name, f"provider {name}" if several else "the STT provider")
        for name in providers
    }
