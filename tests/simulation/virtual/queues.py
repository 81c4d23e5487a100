"""The callbacks of a process: their queue, their handles, and the clock's resolution."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from math import ceil
from typing import Any

TICKS_PER_S = 1 << 20
"""Resolution of the clock. A power of two: sums of times are exact, so no timer fires early."""

DEFAULT_LAG_S = 0.001
"""Maximum delay with which an idle process wakes up."""


def on_grid(when: float) -> float:
    """Round a time up to the resolution of the clock."""
    return ceil(when * TICKS_PER_S) / TICKS_PER_S


class RunQueue:
    """The callbacks of one process.

    A stopped queue (paused or dead) still collects callbacks: `scheduled` is then true, so that the
    loop does not schedule it, and it is not in the loop's list of runnable queues.
    """

    def __init__(self, boot_s: float = 0.0) -> None:
        self.ready: deque[asyncio.Handle] = deque()
        self.scheduled = False
        self.stopped = False
        self.boot_s = boot_s
        """Difference of the host's monotonic clock to the virtual time, on the clock's grid."""
        self.lag_s = DEFAULT_LAG_S
        self.timers_first = False
        """Order of timers and received data that wait for one iteration."""
        self.ready_at_stop = 0
        """Number of callbacks that were ready when the queue was stopped."""
        self.busy_iterations = 0
        self.wake_up = 0
        """Number of the latest pending wake-up: an earlier one is void."""
        self.callbacks_left: int | None = None
        """Callbacks until `on_callbacks_done`; None for no limit."""
        self.on_callbacks_done: Callable[[], None] = _nothing


def _nothing() -> None:
    pass


current_queue: ContextVar[RunQueue] = ContextVar("current_queue")


class VirtualHandle(asyncio.Handle):
    """A handle without the look-ups for asyncio's debug mode."""

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class VirtualTimer(asyncio.TimerHandle):
    """A timer without the look-ups for asyncio's debug mode."""

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True


def sort_events(queue: RunQueue, kept: int) -> None:
    """Sort what became ready after the first `kept` callbacks, as one iteration of a real loop."""
    if len(queue.ready) - kept > 1:
        ready = list(queue.ready)
        events = ready[kept:]
        events.sort(key=lambda handle: isinstance(handle, VirtualTimer) is not queue.timers_first)
        queue.ready.clear()
        queue.ready.extend(ready[:kept] + events)
