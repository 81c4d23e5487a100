"""Gauges of a worker, read on its event loop."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

import anyio
from redis.exceptions import ResponseError

from worker.admin import Readiness
from worker.context import WorkerContext
from worker.core.phases import Phase
from worker.session.session import Session

log = logging.getLogger(__name__)

DEMAND_S = 5.0
"""Interval between readings of the sessions stream's length."""


class ObservedWorker(Protocol):
    """The attributes of a worker that the gauges read (`worker.worker.Worker`)."""

    @property
    def context(self) -> WorkerContext:
        """The parts that the worker's sessions share."""
        ...

    @property
    def running(self) -> Iterable[Session]:
        """The worker's sessions."""
        ...

    @property
    def readiness(self) -> Readiness:
        """Whether the worker can take sessions."""
        ...


class WorkerGauges:
    """Gauges of one worker."""

    def __init__(self, worker: ObservedWorker) -> None:
        self.worker = worker
        self.stats = worker.context.stats
        self.health = worker.context.health
        self._demand: int | None = None

    async def follow_demand(self) -> None:
        """Read the number of sessions from Redis periodically, until cancelled or denied."""
        redis, key = self.worker.context.redis, self.worker.context.keys.sessions
        try:
            while True:
                self._demand = await self.health.retry(partial(redis.xlen, key))
                await anyio.sleep(DEMAND_S)
        except ResponseError as error:  # the worker can run without it
            self._demand = None
            log.warning(
                "demand is no longer measured: cannot read the length of %s (%s)", key, error
            )

    @property
    def demand(self) -> int | None:
        """Number of sessions of all workers; None if it is unknown."""
        return self._demand if self.health.up else None

    @property
    def phases(self) -> Mapping[str, float]:
        """Number of sessions, by phase."""
        phases = Counter({phase.value: 0 for phase in Phase if phase is not Phase.OVER})
        phases.update(s.phase.value for s in self.worker.running if s.phase is not Phase.OVER)
        return phases

    @property
    def lag_s(self) -> float:
        """The largest lag of any session."""
        return max((session.lag_s for session in self.worker.running), default=0.0)

    @property
    def outage_s(self) -> float:
        """Seconds since Redis last answered; 0 while it does."""
        return 0.0 if self.health.up else time.monotonic() - self.health.since
