"""Outages of the STT service, told once each by a worker, however many sessions meet them."""

import logging

from worker.errors import SttError
from worker.plurals import counted

log = logging.getLogger(__name__)

OUTAGE_LOG_AFTER_S = 3.0
"""How long no connect may succeed before it is called an outage: one refusal is none."""

OUTAGE_OVER_AFTER_S = 60.0
"""Time without any attempt after which nothing is known any more."""


class ProviderOutage:
    """Whether the service takes connections; times are on the monotonic clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failed_at = 0.0
        self._logged = False
        self._waiting: set[str] = set()

    def connect_failed(self, session: str, error: SttError, now: float) -> None:
        """Record a connect that failed and will be tried again."""
        if self._since is None or now - self._failed_at > OUTAGE_OVER_AFTER_S:
            self._since, self._logged = now, False
            self._waiting.clear()
        self._failed_at = now
        self._waiting.add(session)
        if not self._logged and now - self._since >= OUTAGE_LOG_AFTER_S:
            self._logged = True
            log.warning(
                "the STT service has taken no connection for %.0f s (%s); sessions wait, "
                "none is lost",
                now - self._since,
                error,
            )

    def connected(self, now: float) -> None:
        """Record a connect."""
        if self._logged and self._since is not None:
            log.warning(
                "the STT service takes connections again after %.1f s; %s waited",
                now - self._since,
                counted(len(self._waiting), "session"),
            )
        self._since, self._logged = None, False
        self._waiting.clear()
