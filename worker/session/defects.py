"""Defects of the provider's messages: counted, and logged once per session."""

import logging

from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)


class Defects:
    """Counts one session's messages that cannot be read, or in part only."""

    def __init__(self, name: SessionName, stats: Counters) -> None:
        self._name = name
        self._stats = stats
        self._count = 0

    def note(self, defect: str) -> None:
        """Count a message. `defect` has none of its content."""
        self._count += 1
        self._stats.provider_unreadable += 1
        if self._count == 1:
            log.warning(
                "%s: the provider sent an unreadable message (%s); the session goes on with what "
                "can be read of it, and counts further ones",
                *(self._name, defect),
            )

    def summarize(self) -> None:
        """Log the count at the session's end, unless the first log line says it all."""
        if self._count > 1:
            log.warning("%s: unreadable messages of the provider: %d", self._name, self._count)
