"""The core of the loop: which callback runs next, and when the clock moves.

Order, and what asyncio promises of it:

- asyncio calls the callbacks of `call_soon` first in, first out. Code relies on it, so each process
  has one queue in that order. An iteration runs what was ready when it began, as in asyncio.
- Processes have no common order. The process that runs its next iteration is drawn.
- asyncio leaves the order of timers of the same time undefined. It is drawn. Timers of different
  times keep their order, because every real loop does that.
- The order between received data and timers follows their virtual times, which network latency
  makes random. An idle process may wake a little late (`lag_s`), as under a real scheduler, and a
  paused process wakes much later. What happened until then falls into one iteration: a reply and
  its timeout, for example. asyncio then handles received data before timers, uvloop timers before
  received data. Each process has one of these orders, drawn.

A callback takes no virtual time. A process that stays busy for `BUSY_ITERATIONS` continues a moment
later, and a timer is due after the present, so code that spins until a timer or a peer acts (anyio
does it to deliver a cancellation) does not stop the clock.
"""

import gc
import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Any

from tests.simulation.virtual.queues import (
    TICKS_PER_S,
    RunQueue,
    VirtualTimer,
    on_grid,
    sort_events,
)

BUSY_ITERATIONS = 64
"""Iterations of a process without a pause after which it yields for `BUSY_PAUSE_S`."""

BUSY_PAUSE_S = 0.000_5

LAG_SHARE = 0.25
"""Share of wake-ups with a delay."""

COLLECTION_INTERVAL = 200_000
"""Iterations between two collections of cycles: finalizers run at the same places in each run."""


class Deadlock(Exception):  # noqa: N818 - names what happened, like the other outcomes of a run
    """Every process waits, and no timer is set."""


class TimeLimit(Exception):  # noqa: N818
    """The program did not end within its virtual time."""


_Event = tuple[float, float, int, RunQueue | None, Any]
"""Time, tie-break, number, process and its timer; or None and a function of the kernel."""


class Scheduler:
    """Runs the callbacks of processes in virtual time."""

    def __init__(self, rng: random.Random) -> None:
        self.now = 0.0
        """True virtual time in seconds, on the clock's grid."""
        self.limit_s = inf
        self.iterations = 0
        self._draw = rng.random
        self._runnable: list[RunQueue] = []
        self._running: RunQueue | None = None
        self._events: list[_Event] = []
        self._event_count = 0
        self._cancelled_timers = 0
        self._next_collection = COLLECTION_INTERVAL

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Call a function of the kernel or the network at a true virtual time on the grid."""
        self._event_count += 1
        heappush(self._events, (when, self._draw(), self._event_count, None, act))

    def add_timer(self, timer: VirtualTimer, queue: RunQueue) -> None:
        """Set a timer of a process. It is due after the present, and never early."""
        due = when = timer._when
        if when != inf:
            due = ceil((when - queue.boot_s) * TICKS_PER_S) / TICKS_PER_S
            if due <= self.now:
                due = self.now + 1 / TICKS_PER_S
        self._event_count += 1
        heappush(self._events, (due, self._draw(), self._event_count, queue, timer))

    def timer_cancelled(self) -> None:
        """Count a cancelled timer; from time to time, remove them all."""
        self._cancelled_timers += 1
        events = self._events
        if self._cancelled_timers > 1_000 and self._cancelled_timers * 2 > len(events):
            events[:] = [each for each in events if each[3] is None or not each[4]._cancelled]
            heapify(events)
            self._cancelled_timers = 0

    def wake(self, queue: RunQueue) -> None:
        """Make an idle process runnable, perhaps a little later."""
        queue.scheduled = True
        drawn = self._draw()
        if drawn < LAG_SHARE and queue.lag_s:
            self._wake_at(on_grid(self.now + drawn / LAG_SHARE * queue.lag_s), queue, busy=False)
        else:
            self._runnable.append(queue)

    def _wake_at(self, when: float, queue: RunQueue, *, busy: bool) -> None:
        self._event_count += 1
        queue.wake_up = number = self._event_count
        kept = len(queue.ready) if busy else 0

        def wake() -> None:
            if queue.wake_up == number and not queue.stopped:
                sort_events(queue, kept)
                self._runnable.append(queue)

        heappush(self._events, (when, self._draw(), number, None, wake))

    def stop_queue(self, queue: RunQueue) -> None:
        """Run no further callback of a process until `continue_queue`."""
        queue.stopped = queue.scheduled = True
        queue.wake_up = 0
        queue.ready_at_stop = len(queue.ready)
        if queue in self._runnable:
            self._runnable.remove(queue)

    def continue_queue(self, queue: RunQueue) -> None:
        """Run the callbacks of a process again."""
        queue.stopped = False
        if queue is self._running:
            return
        queue.scheduled = bool(queue.ready)
        sort_events(queue, queue.ready_at_stop)
        if queue.ready:
            self._runnable.append(queue)

    def step(self) -> None:
        """Run an iteration of a process that is drawn; if none is runnable, move the clock."""
        runnable = self._runnable
        count = len(runnable)
        if count == 0:
            self._advance()
            return
        if count == 1:
            queue = runnable.pop()
        else:
            chosen = int(self._draw() * count)
            queue = runnable[chosen]
            runnable[chosen] = runnable[-1]
            runnable.pop()
        self._run_iteration(queue)
        if self.iterations >= self._next_collection:
            self._next_collection += COLLECTION_INTERVAL
            gc.collect()

    def _run_iteration(self, queue: RunQueue) -> None:
        self.iterations += 1
        self._running = queue
        ready = queue.ready
        count = len(ready)
        if queue.callbacks_left is not None:
            count = min(count, queue.callbacks_left)
            queue.callbacks_left -= count
        for _ in range(count):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
                if queue.stopped:
                    break
        self._running = None
        if queue.callbacks_left == 0:
            queue.callbacks_left = None
            queue.on_callbacks_done()
        if queue.stopped:
            return
        if not ready:
            queue.scheduled = False
            queue.busy_iterations = 0
            return
        queue.busy_iterations += 1
        if queue.busy_iterations % BUSY_ITERATIONS:
            self._runnable.append(queue)
        else:
            self._wake_at(on_grid(self.now + BUSY_PAUSE_S), queue, busy=True)

    def _advance(self) -> None:
        """Move the clock to the next event, and let all events of that time happen."""
        events = self._events
        while events and events[0][3] is not None and events[0][4]._cancelled:
            heappop(events)
            self._cancelled_timers -= 1
        if not events or events[0][0] == inf:
            raise Deadlock(f"after {self.now:g} s every process waits, and no timer is set")
        now = events[0][0]
        if now > self.limit_s:
            raise TimeLimit(f"the program did not end within {self.limit_s:g} s of virtual time")
        self.now = now
        while events and events[0][0] <= now:
            _, _, _, queue, item = heappop(events)
            if queue is None:
                item()
            elif item._cancelled:
                self._cancelled_timers -= 1
            else:
                item._scheduled = False
                queue.ready.append(item)
                if not queue.scheduled:
                    self.wake(queue)
