"""The connector: opens a session's sockets, one after another, and retries until it succeeds.

A session keeps its permit from socket to socket, until it releases it. A worker limits how many
sessions connect at the same time; the others wait in order of arrival.
"""

import logging
import time

import anyio

from worker.bus.ownership import OwnedSession
from worker.bus.permits import Permit
from worker.context import WorkerContext
from worker.core.provider_errors import Backoff
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnTracker
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttShortageError,
    SttTransientError,
)
from worker.session.providers import SessionProviders
from worker.session.publisher import EventPublisher
from worker.session.reports import Reports
from worker.stt.provider import Notes, StreamSettings
from worker.stt.routes import Choice
from worker.stt.stream import Stream
from worker.urls import provider_address

log = logging.getLogger(__name__)

CREDENTIALS_RETRY_S = 15.0
"""Maximum delay between connects while the provider rejects the API key."""


class Connector:
    """Opens sockets for one session."""

    def __init__(
        self,
        context: WorkerContext,
        ownership: OwnedSession,
        providers: SessionProviders,
        tracker: TurnTracker,
        configs: TurnConfigHistory,
        publisher: EventPublisher,
        reports: Reports,
    ) -> None:
        entry = ownership.entry
        self._context = context
        self._name = ownership.name
        self._entry = entry
        self._providers = providers
        self._tracker = tracker
        self._configs = configs
        self._publisher = publisher
        self._reports = reports
        self.failure: SttError | None = None
        """Last error of a connect or a socket; None while a socket works."""
        self._notes = Notes(reports.report_unreadable, reports.unusable_setting)
        self._permit = Permit.of(entry.lane, entry.session, ownership.fence)
        self._backoff = Backoff()
        self.blocked_by_shortage = False
        """Whether this machine could not open a socket at the last attempt."""

    async def connect(self) -> Stream:
        """Return an open stream. Waits for a permit, and between retries.

        Raises `SttPermanentError` if the provider rejects these settings for good.
        """
        wanted = time.monotonic()
        self.blocked_by_shortage = False
        if await self._context.permits.acquire(self._permit):
            self._context.stats.gate_wait.observe(time.monotonic() - wanted)
        slow = Backoff(first_s=1.0, ceiling_s=CREDENTIALS_RETRY_S)
        while True:
            began = time.monotonic()
            choice = self._choose(began)
            try:
                stream = await self._try(choice)
                if stream is not None:
                    return stream
                wait_s = 0.0
            except SttPermanentError as error:
                self._context.stats.connects[error.error_class] += 1
                if self._configs.committed != self._entry.config:
                    self._reset_config(error)
                elif not self.give_up(error):
                    raise
                wait_s = 0.0
            except SttCredentialsError as error:
                self.failure = error
                self._providers.failed(error, began)
                self._on_rejection(error, choice)
                wait_s = slow.next_s()
            except SttShortageError as error:
                self.failure = error
                self._on_shortage(error)
                wait_s = self._backoff.next_s()
            except (SttBusyError, SttTransientError) as error:
                self.failure = error
                self._providers.failed(error, began)
                self._on_failure(error, choice)
                wait_s = self._backoff.next_s()
            await self._wait(wait_s)

    async def wait_before_reconnect(self, *, progressed: bool) -> None:
        """Wait after a lost socket, before the next connect.

        `progressed` is whether the socket committed audio, or sent audio for the first time. A
        socket that did neither counts as a failed connect.
        """
        if progressed:
            self._backoff.reset()
        await self._wait(self._backoff.next_s())

    async def _wait(self, wait_s: float) -> None:
        """Wait before the next connect, unless another provider can be tried."""
        if not self._providers.several:
            await anyio.sleep(wait_s)
            return
        until = time.monotonic() + wait_s
        while (now := time.monotonic()) < until:
            if self._providers.must_move(now):
                return
            await anyio.sleep(min(self._providers.next_check_s(now), until - now))

    def _choose(self, now: float) -> Choice:
        """Return where to connect; a provider that was not tried yet gets a new back-off."""
        before = self._providers.current
        choice = self._providers.choose(now, inside_turn=self._tracker.open)
        if choice is not before and not self._providers.all_failed:
            self._backoff.reset()
        address = provider_address(choice.route.url)
        self._publisher.trace.use_provider(choice.name, *address)
        return choice

    def give_up(self, error: SttPermanentError) -> bool:
        """Leave a provider that rejects the session for good; False if there is no other."""
        rejecting = self._providers.current.name
        if not self._providers.give_up(error, time.monotonic()):
            return False
        self._publisher.publish_error(
            error.code or "stt_refused",
            f"provider {rejecting} does not serve this session: {error}",
            status=error.status,
        )
        return True

    async def release_permit(self) -> None:
        """Release the permit, because the session needs no socket now."""
        await self._context.permits.release(self._permit)

    def revoke_config(self, error: SttPermanentError) -> bool:
        """Drop settings changed since the session began, which may be why the socket was closed.

        Returns whether there are any. If so, a new socket may succeed.
        """
        if not self._configs.revoke(self._entry.config):
            return False
        self._report_config_dropped(error)
        return True

    def _settings(self, choice: Choice) -> StreamSettings:
        """Return settings for a socket: those in force at the first audio it will receive."""
        return StreamSettings(
            model=choice.candidate.model,
            language=choice.candidate.language_hint,
            encoding=self._entry.encoding,
            sample_rate=self._entry.sample_rate,
            keyterms=self._entry.keyterms,
            turn=self._context.settings.turn_config.merged(self._configs.committed),
        )

    def _reset_config(self, error: SttPermanentError) -> None:
        """Go back to the settings with which the session was announced.

        A change that the provider rejected on an open socket did no harm there. It must not end the
        session when another socket is opened.
        """
        self._configs.reset_to(self._entry.config)
        self._report_config_dropped(error)

    def _report_config_dropped(self, error: SttPermanentError) -> None:
        log.warning(
            "%s: turn settings changed since the session began are dropped (%s)", self._name, error
        )
        self._publisher.publish_error(
            error.code or "stt_error",
            f"turn settings changed since the session began are dropped: {error}",
            status=error.status,
        )

    async def _try(self, choice: Choice) -> Stream | None:
        """Return an open stream; None if another provider is better once a slot is free.

        While a provider is silent, each of its slots is free only after the failover time.
        """
        context, route, settings = self._context, choice.route, self._settings(choice)
        health = context.provider_health[choice.name]
        async with health.connect_slots:
            began = time.monotonic()
            if self._choose(began) is not choice:
                return None
            limit_s = self._providers.connect_timeout_s(began)
            with self._publisher.trace.connecting(settings.model) as span:
                with anyio.move_on_after(limit_s) as patience:
                    stream = await route.provider.open(route.endpoint, settings, self._notes)
                if patience.cancelled_caught:
                    raise SttTransientError(f"no `connected` within {limit_s:.1f} s")
                span.set_attribute("gen_ai.response.id", stream.request_id)
        now = time.monotonic()
        health.credentials.accepted()
        health.outage.connected(now)
        context.shortage.connected(now)
        context.stats.connects["ok"] += 1
        context.stats.provider_unknown += stream.ignored
        context.stats.connect_s.observe(now - began)
        return stream

    def _on_rejection(self, error: SttCredentialsError, choice: Choice) -> None:
        self._context.stats.connects[error.error_class] += 1
        model = choice.candidate.model
        if model == choice.route.offer.models[0]:
            self._context.provider_health[choice.name].credentials.rejected(error)
        else:  # the plan may exclude only this session's model
            log.warning("%s: model %s: %s", self._name, model, error)

    def _on_failure(self, error: SttBusyError | SttTransientError, choice: Choice) -> None:
        self._context.stats.connects[error.error_class] += 1
        level = logging.DEBUG if self._backoff.failures else logging.INFO
        log.log(level, "%s: provider %s: %s", self._name, choice.name, error)
        outage = self._context.provider_health[choice.name].outage
        outage.connect_failed(self._name, error, time.monotonic())

    def _on_shortage(self, error: SttShortageError) -> None:
        self._context.stats.connects[error.error_class] += 1
        log.debug("%s: %s", self._name, error)
        self._context.shortage.record(error, time.monotonic())
        self.blocked_by_shortage = True
