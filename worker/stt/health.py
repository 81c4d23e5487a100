"""Outages of the STT provider; a worker logs each once, not for every session."""

import logging

from worker.errors import SttError
from worker.text import pluralize

log = logging.getLogger(__name__)

OUTAGE_LOG_AFTER_S = 3.0
"""Minimum time without a successful connect that counts as an outage: one failure does not."""

OUTAGE_OVER_AFTER_S = 60.0
"""Maximum time between failed attempts of one outage."""


class ProviderOutage:
    """Whether the provider accepts connections; times are on the monotonic clock."""

    def __init__(self) -> None:
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
                "the STT provider accepted no connection for %.0f s (%s); sessions wait, "
                "none is lost",
                now - self._since,
                error,
            )

    def connected(self, now: float) -> None:
        """Record a successful connect."""
        if self._logged and self._since is not None:
            log.warning(
                "the STT provider accepts connections again after %.1f s; %s waited",
                now - self._since,
                pluralize(len(self._waiting), "session"),
            )
        self._since, self._logged = None, False
        self._waiting.clear()
