"""The dialer: gets a session its sockets, one after the other, however long the service takes.

A session keeps its place at the gate from socket to socket, until it hangs up. Only so many
sessions of a worker dial at the same time; the others wait in the order they came.
"""

import logging
import time

import anyio

from worker.bus.gate import Seat
from worker.bus.intake import Ownership
from worker.core.configs import Configs
from worker.core.faults import Backoff
from worker.errors import (
    SttBusy,
    SttCredentials,
    SttError,
    SttPermanent,
    SttShortage,
    SttTransient,
)
from worker.host import Host
from worker.sessions.defects import Defects
from worker.sessions.narrator import Narrator
from worker.stt.cartesia import Stream, StreamSettings, open_stream

log = logging.getLogger(__name__)

CREDENTIALS_RETRY_S = 15.0
"""Ceiling of the wait between connects while the service refuses the key."""


class Dialer:
    """Dials for one session."""

    def __init__(
        self,
        host: Host,
        ownership: Ownership,
        configs: Configs,
        narrator: Narrator,
        defects: Defects,
    ) -> None:
        entry = ownership.session
        self._host = host
        self._name = ownership.name
        self._entry = entry
        self._configs = configs
        self._narrator = narrator
        self._defects = defects
        self.failure: SttError | None = None
        """The last failure of a connect or a socket; None if one works."""
        self._seat = Seat.of(entry.lane, entry.session, ownership.fence)
        self._backoff = Backoff()
        self.stranded = False
        """This machine could not open a socket when the session wanted one last."""

    async def dial(self) -> Stream:
        """Return an open stream, waiting for a permit and as the refusals ask for.

        Raises `SttPermanent` if the service will never take these settings.
        """
        wanted = time.monotonic()
        self.stranded = False
        if await self._host.gate.enter(self._seat):
            self._host.stats.gate_wait.observe(time.monotonic() - wanted)
        slow = Backoff(first_s=1.0, ceiling_s=CREDENTIALS_RETRY_S)
        while True:
            settings = self._settings
            try:
                return await self._try(settings)
            except SttPermanent as error:
                self._host.stats.connects[error.fault_class] += 1
                if self._configs.settled == self._entry.config:
                    raise
                self._fall_back(error)
                wait_s = 0.0
            except SttCredentials as error:
                self.failure = error
                self._refused(error, settings.model)
                wait_s = slow.next_s()
            except SttShortage as error:
                self.failure = error
                self._short(error)
                wait_s = self._backoff.next_s()
            except (SttBusy, SttTransient) as error:
                self.failure = error
                self._failed(error)
                wait_s = self._backoff.next_s()
            await anyio.sleep(wait_s)

    async def pause(self, *, progressed: bool) -> None:
        """Wait as long as is due after a socket that was lost.

        `progressed` tells whether it got audio committed, or was sent audio that no socket before
        it was: one that did neither is as good as none.
        """
        if progressed:
            self._backoff.reset()
        await anyio.sleep(self._backoff.next_s())

    async def hang_up(self) -> None:
        """Give up the place at the gate: no socket is wanted now."""
        await self._host.gate.leave(self._seat)

    def withdraw(self, error: SttPermanent) -> bool:
        """Drop settings given since the session began, over which the socket may be closed.

        Returns whether there are any: a new socket may go well then.
        """
        if not self._configs.withdraw(self._entry.config):
            return False
        self._tell_dropped(error)
        return True

    @property
    def _settings(self) -> StreamSettings:
        """What to open a socket with: what holds for the first audio it will hear."""
        return StreamSettings(
            model=self._entry.model or self._host.model,
            encoding=self._entry.encoding,
            sample_rate=self._entry.sample_rate,
            keyterms=self._entry.keyterms,
            turn=self._host.turn.merged(self._configs.settled),
        )

    def _fall_back(self, error: SttPermanent) -> None:
        """Go back to the settings the session was announced with.

        A change of them that the service refused on an open socket has cost nothing; it must not
        cost the session now that another socket is opened.
        """
        self._configs.fall_back(self._entry.config)
        self._tell_dropped(error)

    def _tell_dropped(self, error: SttPermanent) -> None:
        log.warning("%s: settings given since its beginning are dropped: %s", self._name, error)
        self._narrator.error(
            error.code or "stt_error",
            f"turn settings given since the session began are dropped: {error}",
            status=error.status,
        )

    async def _try(self, settings: StreamSettings) -> Stream:
        host = self._host
        async with host.connects:
            began = time.monotonic()
            with self._narrator.trace.connecting(settings.model) as span:
                stream = await open_stream(host.service, settings, self._defects.note)
                span.set_attribute("gen_ai.response.id", stream.request_id)
        host.credentials.accepted()
        host.shortage.connected(time.monotonic())
        host.outage.ended(time.monotonic())
        host.stats.connects["ok"] += 1
        host.stats.provider_unknown += stream.ignored
        host.stats.connect_s.observe(time.monotonic() - began)
        return stream

    def _refused(self, error: SttCredentials, model: str) -> None:
        self._host.stats.connects[error.fault_class] += 1
        if model == self._host.model:
            self._host.credentials.refused(error)
        else:  # what the plan says of another model is not said of ours
            log.warning("%s: model %s: %s", self._name, model, error)

    def _failed(self, error: SttBusy | SttTransient) -> None:
        self._host.stats.connects[error.fault_class] += 1
        level = logging.DEBUG if self._backoff.failures else logging.INFO
        log.log(level, "%s: %s", self._name, error)
        self._host.outage.failed(self._name, error, time.monotonic())

    def _short(self, error: SttShortage) -> None:
        self._host.stats.connects[error.fault_class] += 1
        log.debug("%s: %s", self._name, error)
        self._host.shortage.met(error, time.monotonic())
        self.stranded = True
