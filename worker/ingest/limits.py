"""Limits of the HTTP port, and what the system's limit of open files leaves of them."""

import logging
from typing import Final

import msgspec

from worker import descriptors

RESERVED_DESCRIPTORS: Final = 256
"""Number of descriptors for everything but the HTTP port: Redis, AudioSocket, name lookups."""

SPARE_CONNECTIONS: Final = 16
"""Number of connections above `max_connections` for health checks and metrics."""

_log = logging.getLogger(__name__)


class Limits(msgspec.Struct, frozen=True):
    """Limits of the HTTP port; they bound its memory and its descriptors."""

    max_connections: int = 10_000
    """Maximum number of connections with a request; later requests are answered with 503."""
    max_unanswered: int = 1_000
    """Maximum number of connections without a complete request; beyond, the oldest is closed."""
    max_request_bytes: int = 32 * 1024
    """Maximum size of a request."""
    max_message_bytes: int = 1024 * 1024
    queue_bytes: int = 1024 * 1024
    """Size of the messages that wait for the handler above which reading pauses."""
    unread_bytes: int = 4 * 1024 * 1024
    """Size of the answers that wait for a peer above which an incoming message drops it."""
    request_timeout_s: float = 10.0
    """Timeout for a complete request."""
    ping_interval_s: float = 20.0
    """Time without data after which a ping is sent."""
    pong_timeout_s: float = 20.0
    """Time without data after a ping until the peer counts as lost."""
    write_timeout_s: float = 30.0
    """Time without progress of a write until the peer is dropped."""
    close_timeout_s: float = 2.0
    """Timeout for the peer's part of closing."""

    @property
    def check_interval_s(self) -> float:
        """Interval between checks of all connections."""
        timeouts = (
            self.request_timeout_s,
            self.ping_interval_s,
            self.pong_timeout_s,
            self.write_timeout_s,
            self.close_timeout_s,
        )
        return min(1.0, min(timeouts) / 4)

    @property
    def descriptors(self) -> int:
        """Number of descriptors that the process needs with these limits."""
        return self.max_connections + self.max_unanswered + SPARE_CONNECTIONS + RESERVED_DESCRIPTORS


def fit(limits: Limits, max_files: int) -> Limits:
    """Return the limits with as many connections as `max_files` open files allow, at least one."""
    if limits.descriptors <= max_files:
        return limits
    room = max_files - SPARE_CONNECTIONS - RESERVED_DESCRIPTORS
    max_unanswered = max(1, min(limits.max_unanswered, room // 4))
    return msgspec.structs.replace(
        limits,
        max_unanswered=max_unanswered,
        max_connections=max(1, min(limits.max_connections, room - max_unanswered)),
    )


def fit_to_system(limits: Limits) -> Limits:
    """Raise the soft limit of open files as needed; log if the hard limit is too low."""
    max_files = descriptors.raise_soft_limit(limits.descriptors)
    fitted = fit(limits, max_files)
    if fitted != limits:
        _log.warning(
            "at most %d files may be open and %d connections need %d: the HTTP port serves %d; %s",
            max_files,
            limits.max_connections,
            limits.descriptors,
            fitted.max_connections,
            descriptors.ADVICE,
        )
    return fitted
