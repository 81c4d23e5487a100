"""File descriptors: how many sessions this process can open sockets for.

Each session has one socket. A worker reserves descriptors for everything else: without one, it
could not renew its leases or report the error on `/readyz`.
"""

import errno
import os
import resource
import socket
import sys

from aiohappyeyeballs import AddrInfoType

from worker.bus.client.connection import MAX_CONNECTIONS
from worker.errors import TurnbusError
from worker.network import new_socket
from worker.settings import Settings
from worker.text import pluralize
from worker.urls import parse_servers

OTHER_DESCRIPTORS = 64
"""Number of descriptors for everything but sessions and Redis: the standard three, the event loop,
health checks, name lookups, exports, and parallel attempts at a host's second address."""

SPARE_DESCRIPTORS = 16
"""Number of descriptors below the limit that no session's socket may use."""

LEAST_DESCRIPTORS = 32
"""Minimum number of descriptors for a worker to start and report the limit on `/readyz`."""

UNLIMITED = sys.maxsize


ADVICE = "raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile)"
"""What to do about a limit that is too low."""


def limits() -> tuple[int, int]:
    """Return the soft and the hard limit of open files; `UNLIMITED` if there is none."""
    soft, hard = (
        UNLIMITED if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return soft, hard


def needed(settings: Settings) -> int:
    """Return how many descriptors a worker needs with `max_sessions` sessions."""
    return settings.max_sessions + _reserved(settings)


def capacity(settings: Settings, limit: int) -> int:
    """Return how many sessions a worker can serve with `limit` open files."""
    return max(0, min(settings.max_sessions, limit - _reserved(settings)))


def shortfall(settings: Settings, limit: int) -> str | None:
    """Return why a limit of open files is too low, and what to do; None if it is enough."""
    fits = capacity(settings, limit)
    if fits == settings.max_sessions:
        return None
    return (
        f"at most {limit} files may be open and TURNBUS_MAX_SESSIONS={settings.max_sessions} needs "
        f"{needed(settings)}: there is room for {pluralize(fits, 'session')}; {ADVICE}, or lower "
        "TURNBUS_MAX_SESSIONS"
    )


def raise_limit(settings: Settings) -> int:
    """Raise the soft limit to what a worker needs, at most to the hard limit; return it.

    Raises `TurnbusError` below `LEAST_DESCRIPTORS`.
    """
    _, hard = limits()
    if hard < LEAST_DESCRIPTORS:
        raise TurnbusError(
            f"at most {hard} files may be open and a worker needs {LEAST_DESCRIPTORS} without any "
            f"session, {needed(settings)} with TURNBUS_MAX_SESSIONS={settings.max_sessions}; "
            f"{ADVICE}"
        )
    return raise_soft_limit(needed(settings))


def raise_soft_limit(needed_files: int) -> int:
    """Raise the soft limit to `needed_files`, at most to the hard limit; return it."""
    soft, hard = limits()
    wanted = min(needed_files, hard)
    if soft >= wanted:
        return soft
    try:
        # The hard limit stays as it is, `RLIM_INFINITY` included.
        _, kept = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, kept))
    except (ValueError, OSError):  # macOS has a lower limit of its own for each process
        return soft
    return wanted


def session_socket(address: AddrInfoType) -> socket.socket:
    """Return a new socket for a session.

    Raises `OSError` with EMFILE also if only the spare descriptors are left. The system assigns the
    lowest free number, so the number shows how many are left.
    """
    made = new_socket(address)
    soft, _ = limits()
    if made.fileno() >= soft - SPARE_DESCRIPTORS:
        made.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return made


def shortage_in_words(error: OSError) -> str:
    """Return which resource this machine lacks, from the `error` of opening a socket."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EMFILE:
        reason += f", at most {limits()[0]}"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason += ": no local port is left, or no address of the provider's kind"
    elif error.errno == errno.EAGAIN:
        reason = error.strerror or reason
    return f"this machine cannot open a socket ({reason})"


def _reserved(settings: Settings) -> int:
    servers = parse_servers(settings.redis_url)
    masters = len(servers.addresses) if servers and not servers.master_name else 1
    return OTHER_DESCRIPTORS + MAX_CONNECTIONS * masters
