"""The breakers of the providers, which all workers share on Redis.

Nothing here waits: sessions read a local copy, and reports are sent once a second. A report that
Redis does not take costs only knowledge: until it does, each worker follows what it knows itself.
"""

import logging
import time
from collections.abc import Callable, Sequence

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.keys import Keys
from worker.bus import scripts
from worker.bus.client.connection import describe, is_outage
from worker.core.breaker import (
    FIRST_PROBE_S,
    MAX_FAILURES,
    MAX_PROBE_S,
    PROBE_LEASE_S,
    WINDOW_S,
    Breaker,
    BreakerState,
)

log = logging.getLogger(__name__)

EXCHANGE_INTERVAL_S = 1.0
"""Interval between exchanges with Redis."""

EXPIRY_S = 600
"""Time after which an open breaker that no worker probes is closed: no session wants the provider,
and the next failures open it again."""


class Breakers:
    """The breakers of the configured providers, as one worker knows them."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        consumer: str,
        providers: Sequence[str],
        now: Callable[[], float] | None = None,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._consumer = consumer
        self._breakers = {name: Breaker() for name in providers}
        self._open_logged: set[str] = set()
        self._unshared: dict[str, str] = {}  # why a provider's key cannot be used, as logged
        self._now = now or time.monotonic

    def states(self) -> dict[str, BreakerState]:
        """Return the state of each provider's breaker, from the local copy."""
        now = self._now()
        return {name: breaker.state(now) for name, breaker in self._breakers.items()}

    def failed(self, provider: str, session: str) -> None:
        """Record a connect that failed, or a socket that was lost, silent or stuck.

        What the session itself causes is no failure of the provider: invalid settings, a shortage
        on this machine, a close that the worker requested.
        """
        self._breakers[provider].failed(session, self._now())
        self._log_change(provider)

    def succeeded(self, provider: str) -> None:
        """Record a socket that works: it lasted, or its provider sent an event about audio.

        A mere handshake is no success: a provider that accepts sockets may still be silent.
        """
        self._breakers[provider].succeeded()

    def take_probe(self, provider: str) -> bool:
        """Return whether the caller may, and now must, try a provider whose breaker is open.

        The caller reports the result with `probe_ended`, and not with `failed` or `succeeded`.
        """
        return self._breakers[provider].take_probe(self._now())

    def probe_ended(self, provider: str, *, succeeded: bool) -> None:
        """Record how a probe ended."""
        self._breakers[provider].probe_ended(self._now(), succeeded=succeeded)
        self._log_change(provider)

    async def run(self) -> None:
        """Exchange reports and states with Redis until cancelled.

        A single provider needs no breaker: there is none to go to.
        """
        while len(self._breakers) > 1:
            for provider in self._breakers:
                try:
                    await self.exchange(provider)
                except (RedisError, OSError) as error:
                    self._note_unshared(provider, error)
                else:
                    self._unshared.pop(provider, None)
            await anyio.sleep(EXCHANGE_INTERVAL_S)

    async def exchange(self, provider: str) -> None:
        """Send one provider's report, and adopt the fleet's state.

        Raises redis-py's errors; the report is then sent again with the next one.
        """
        breaker = self._breakers[provider]
        report = breaker.report(self._now())
        state, granted = await scripts.exchange_breaker(
            self._redis,
            breaker_key=self._keys.breaker(provider),
            holder=self._consumer,
            succeeded=int(report.succeeded),
            probe=report.probe,
            wants_probe=int(report.wants_probe),
            max_failures=MAX_FAILURES,
            window_ms=int(WINDOW_S * 1000),
            lease_ms=int(PROBE_LEASE_S * 1000),
            first_wait_ms=int(FIRST_PROBE_S * 1000),
            max_wait_ms=int(MAX_PROBE_S * 1000),
            jitter=breaker.next_jitter(),
            expiry_s=EXPIRY_S,
            sessions=(failure.session for failure in report.failures),
        )
        breaker.adopt(report, state.decode(), self._now(), granted=bool(granted))
        self._log_change(provider)

    def _log_change(self, provider: str) -> None:
        if len(self._breakers) == 1:
            return
        closed = self._breakers[provider].state(self._now()) is BreakerState.CLOSED
        if not closed and provider not in self._open_logged:
            self._open_logged.add(provider)
            log.warning("provider %s: failing; new sockets go to the next provider", provider)
        elif closed and provider in self._open_logged:
            self._open_logged.discard(provider)
            log.warning("provider %s: works again", provider)

    def _note_unshared(self, provider: str, error: RedisError | OSError) -> None:
        """Log once why Redis cannot be used. Other parts log its outages."""
        reason = describe(error)
        if is_outage(error):
            log.debug("provider %s: the breaker is not shared: %s", provider, reason)
        elif self._unshared.get(provider) != reason:
            self._unshared[provider] = reason
            log.warning(
                "provider %s: the breaker is not shared with other workers: %s", provider, reason
            )
