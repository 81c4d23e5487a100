"""Supervision of a worker's components: internal errors are logged, counted and survived.

An unexpected exception would end the worker. If data in Redis causes it, it would end every other
worker too. Errors that an operator has to fix still end the worker: a missing permission of the
Redis user, and every error that turnbus raises on purpose.
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
"""Maximum delay before a component restarts: far below a lease."""


class Supervisor:
    """Logs and counts the internal errors of one worker, with their tracebacks."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    @contextmanager
    def isolate(self, part: str) -> Iterator[None]:
        """Confine an internal error of component `part` to the body of the `with` statement."""
        try:
            yield
        except Exception as error:
            if _is_expected(error):
                raise
            log.exception("%s: internal error, continuing", part)
            self._counts[part] += 1

    async def run_forever(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until it completes; after an internal error, restart it with a delay."""
        backoff = Backoff(MAX_RESTART_DELAY_S / 10, MAX_RESTART_DELAY_S)
        done = False
        while not done:
            with self.isolate(part):
                await work()
                done = True
            if not done:
                await anyio.sleep(backoff.next_s())


def _is_expected(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return any(map(_is_expected, error.exceptions))
    return isinstance(error, NoPermissionError | TurnbusError)
