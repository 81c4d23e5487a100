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
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttShortageError,
    SttTransientError,
)
from worker.session.publisher import EventPublisher
from worker.session.reports import Reports
from worker.stt.provider import Notes, StreamSettings
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
        configs: TurnConfigHistory,
        publisher: EventPublisher,
        reports: Reports,
    ) -> None:
        entry = ownership.entry
        self._context = context
        self._name = ownership.name
        self._entry = entry
        self._route, self._candidate = context.route_of(entry)
        publisher.trace.use_provider(self._route.provider.name, *provider_address(self._route.url))
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
            settings = self._settings
            try:
                return await self._try(settings)
            except SttPermanentError as error:
                self._context.stats.connects[error.error_class] += 1
                if self._configs.committed == self._entry.config:
                    raise
                self._reset_config(error)
                wait_s = 0.0
            except SttCredentialsError as error:
                self.failure = error
                self._on_rejection(error, settings.model)
                wait_s = slow.next_s()
            except SttShortageError as error:
                self.failure = error
                self._on_shortage(error)
                wait_s = self._backoff.next_s()
            except (SttBusyError, SttTransientError) as error:
                self.failure = error
                self._on_failure(error)
                wait_s = self._backoff.next_s()
            await anyio.sleep(wait_s)

    async def wait_before_reconnect(self, *, progressed: bool) -> None:
        """Wait after a lost socket, before the next connect.

        `progressed` is whether the socket committed audio, or sent audio for the first time. A
        socket that did neither counts as a failed connect.
        """
        if progressed:
            self._backoff.reset()
        await anyio.sleep(self._backoff.next_s())

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

    @property
    def _settings(self) -> StreamSettings:
        """Settings for the next socket: those in force at the first audio it will receive."""
        return StreamSettings(
            model=self._candidate.model,
            language=self._candidate.language_hint,
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

    async def _try(self, settings: StreamSettings) -> Stream:
        context, route = self._context, self._route
        async with context.connect_slots:
            began = time.monotonic()
            with self._publisher.trace.connecting(settings.model) as span:
                stream = await route.provider.open(route.endpoint, settings, self._notes)
                span.set_attribute("gen_ai.response.id", stream.request_id)
        context.credentials.accepted()
        context.shortage.connected(time.monotonic())
        context.provider_outage.connected(time.monotonic())
        context.stats.connects["ok"] += 1
        context.stats.provider_unknown += stream.ignored
        context.stats.connect_s.observe(time.monotonic() - began)
        return stream

    def _on_rejection(self, error: SttCredentialsError, model: str) -> None:
        self._context.stats.connects[error.error_class] += 1
        if model == self._route.offer.models[0]:
            self._context.credentials.rejected(error, self._route.provider.name)
        else:  # the plan may exclude only this session's model
            log.warning("%s: model %s: %s", self._name, model, error)

    def _on_failure(self, error: SttBusyError | SttTransientError) -> None:
        self._context.stats.connects[error.error_class] += 1
        level = logging.DEBUG if self._backoff.failures else logging.INFO
        log.log(level, "%s: %s", self._name, error)
        self._context.provider_outage.connect_failed(self._name, error, time.monotonic())

    def _on_shortage(self, error: SttShortageError) -> None:
        self._context.stats.connects[error.error_class] += 1
        log.debug("%s: %s", self._name, error)
        self._context.shortage.record(error, time.monotonic())
        self.blocked_by_shortage = True
