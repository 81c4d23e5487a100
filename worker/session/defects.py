"""Unreadable provider messages: counted, and logged once per session."""

import logging

from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)


class Defects:
    """Counts one session's messages that cannot be decoded, or only in part."""

    def __init__(self, name: SessionName, stats: Counters) -> None:
        self._name = name
        self._stats = stats
        self._count = 0

    def note(self, defect: str) -> None:
        """Count a message. `defect` contains none of the message's content."""
        self._count += 1
        self._stats.provider_unreadable += 1
        if self._count == 1:
            log.warning(
                "%s: unreadable message from the provider (%s); the session continues with its "
                "readable parts; further ones are counted, not logged",
                *(self._name, defect),
            )

    def summarize(self) -> None:
        """Log the count at the session's end, if it is more than the one already logged."""
        if self._count > 1:
            log.warning("%s: unreadable messages from the provider: %d", self._name, self._count)
