"""Keepers: what a worker does all the time, kept going over faults of ours.

An exception nobody thought of would end the worker, and where something on the bus brings it about
the next worker, too, and so the fleet. What an operator has to mend still ends it: a right that the
Redis user lacks, and whatever turnbus raises on purpose.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
from redis.exceptions import NoPermissionError

from worker.core.provider_errors import Backoff
from worker.errors import TurnbusError

log = logging.getLogger(__name__)

MAX_RESTART_DELAY_S = 1.0
"""Longest pause before a keeper goes on: far below a lease."""


class Supervisor:
    """Faults of ours in one worker: each is logged with its traceback, and counted."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    @contextmanager
    def isolate(self, part: str) -> Iterator[None]:
        """Let a fault end what is done inside, and nothing else; `part` of the worker is it in."""
        try:
            yield
        except Exception as fault:
            if _is_expected(fault):
                raise
            log.exception("%s: a fault of ours; the worker goes on", part)
            self._counts[part] += 1

    async def run_forever(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` until it is done; where a fault ends it, begin again after a pause."""
        backoff = Backoff(MAX_RESTART_DELAY_S / 10, MAX_RESTART_DELAY_S)
        done = False
        while not done:
            with self.isolate(part):
                await work()
                done = True
            if not done:
                await anyio.sleep(backoff.next_s())


def _is_expected(fault: Exception) -> bool:
    if isinstance(fault, ExceptionGroup):
        return any(map(_is_expected, fault.exceptions))
    return isinstance(fault, NoPermissionError | TurnbusError)
