"""The meter: what is measured of a worker beside what it counts, read on its event loop."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

import anyio
from redis.exceptions import ResponseError

from worker.admin import Readiness
from worker.bus.connection import patiently
from worker.host import Host
from worker.sessions.session import Phase, Session

log = logging.getLogger(__name__)

DEMAND_S = 5.0
"""How often the length of the sessions stream is asked for."""


class Observed(Protocol):
    """What is read of a worker (`worker.service.Worker`)."""

    @property
    def host(self) -> Host:
        """The parts its sessions share."""
        ...

    @property
    def roster(self) -> Iterable[Session]:
        """The sessions it runs."""
        ...

    @property
    def readiness(self) -> Readiness:
        """Whether it can take sessions."""
        ...


class Meter:
    """Measures one worker."""

    def __init__(self, worker: Observed) -> None:
        self.worker = worker
        self.stats = worker.host.stats
        self.health = worker.host.health
        self._demand: int | None = None

    async def follow_demand(self) -> None:
        """Keep asking Redis how many sessions there are, until cancelled or denied."""
        redis, key = self.worker.host.redis, self.worker.host.keys.sessions
        try:
            while True:
                self._demand = await patiently(self.health, partial(redis.xlen, key))
                await anyio.sleep(DEMAND_S)
        except ResponseError as error:  # no reason to stop working
            self._demand = None
            log.warning("the length of %s is not measured any more: %s", key, error)

    @property
    def demand(self) -> int | None:
        """Sessions of the whole bus; None while that cannot be known."""
        return self._demand if self.health.up else None

    @property
    def phases(self) -> Mapping[str, float]:
        """Sessions by what they are at."""
        phases = Counter({phase.value: 0 for phase in Phase if phase is not Phase.OVER})
        phases.update(s.phase.value for s in self.worker.roster if s.phase is not Phase.OVER)
        return phases

    @property
    def lag_s(self) -> float:
        """The largest lag of any session."""
        return max((session.lag_s for session in self.worker.roster), default=0.0)

    @property
    def outage_s(self) -> float:
        """Seconds since Redis last answered; 0 while it does."""
        return 0.0 if self.health.up else time.monotonic() - self.health.since
