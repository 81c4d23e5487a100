"""A deterministic asyncio event loop: virtual time, many processes, a seeded order.

It is asyncio's own selector loop with another core. Tasks, futures, transports, servers and
`sock_*` are asyncio's code; only the queue of callbacks, the timers and the watched sockets are
replaced. Simulated sockets (`sockets.py`) take the place of the selector.

Processes share the loop. A context variable names the process of a callback, and asyncio copies it
into every handle, so a callback always runs in the process that asked for it.

Order, and what asyncio promises of it:

- asyncio calls the callbacks of `call_soon` first in, first out. Code relies on it, so each process
  has one queue in that order. An iteration runs what was ready when it began, as in asyncio.
- Processes have no common order. The process that runs its next iteration is drawn.
- asyncio leaves the order of timers of the same time undefined. It is drawn. Timers of different
  times keep their order, because every real loop does that.
- The order between received data and timers follows their virtual times, which network latency
  makes random. An idle process may also wake a little late (`lag_s`), as under a real scheduler.
  What happens until then falls into one iteration: a reply and its timeout, for example.

A callback takes no virtual time. A process that stays busy for `BUSY_ITERATIONS` continues a moment
later, so that code that spins until a timer or a peer acts (anyio does it to deliver a
cancellation) does not stop the clock.

`asyncio.Task` hashes by its memory address, and anyio cancels the tasks of a scope in the order of
a set. Tasks of this loop hash by a number drawn from the seed.
"""

import asyncio
import random
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple

TICKS_PER_S = 1 << 20
"""Resolution of the clock. A power of two: sums of times are exact, so no timer fires early."""

BUSY_ITERATIONS = 64
"""Iterations of a process without a pause after which it yields for `BUSY_PAUSE_S`."""

BUSY_PAUSE_S = 0.000_5

DEFAULT_LAG_S = 0.001
"""Maximum delay with which an idle process wakes up."""

LAG_SHARE = 0.25
"""Share of wake-ups with a delay."""

MAX_ITERATIONS_PER_INSTANT = 1_000_000

FIRST_DESCRIPTOR = 8

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Deadlock(Exception):  # noqa: N818 - names what happened, like the other outcomes of a run
    """Every process waits, and no timer is set."""


class TimeLimit(Exception):  # noqa: N818
    """The program did not end within its virtual time."""


class Livelock(Exception):  # noqa: N818
    """Processes run without end while the virtual time stands still."""


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
        self.busy_iterations = 0
        self.wake_up = 0
        """Number of the latest pending wake-up: an earlier one is void."""
        self.callbacks_left: int | None = None
        """Callbacks until `on_callbacks_done`; None for no limit."""
        self.on_callbacks_done: Callable[[], None] = _nothing


def _nothing() -> None:
    pass


current_queue: ContextVar[RunQueue] = ContextVar("current_queue")


class _Handle(asyncio.Handle):
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


class _Timer(asyncio.TimerHandle):
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


class VirtualTask(asyncio.Task[Any]):
    """A task whose hash is drawn from the seed, and which knows its process."""

    queue: RunQueue
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            loop = self.get_loop()
            assert isinstance(loop, VirtualLoop)
            self._hash = loop.draw_hash()
            return self._hash


class Watched(Protocol):
    """A simulated socket."""

    def set_reader(self, handle: asyncio.Handle | None) -> bool:
        """Set what to call while the socket is readable; return whether something was set."""

    def set_writer(self, handle: asyncio.Handle | None) -> bool:
        """Set what to call while the socket is writable; return whether something was set."""


class _NoSelector:
    """In place of a selector, which the loop never asks."""

    def close(self) -> None:
        """Close nothing."""


_Event = tuple[float, float, int, RunQueue | None, Any]
"""Time, tie-break, number, process and its timer; or None and a function of the kernel."""


class VirtualLoop(BaseSelectorEventLoop):
    """An event loop for the processes of all hosts. It owns no descriptor and no thread."""

    _closed: bool
    _stopping: bool

    def __init__(self, rng: random.Random) -> None:
        super().__init__(_NoSelector())  # type: ignore[arg-type]
        self.now = 0.0
        """True virtual time in seconds, on the clock's grid."""
        self.limit_s = inf
        self.iterations = 0
        self.outside = RunQueue()
        """Callbacks that no process asked for."""
        self._draw = rng.random
        self._draw_bits = rng.getrandbits
        self._runnable: list[RunQueue] = []
        self._events: list[_Event] = []
        self._event_count = 0
        self._cancelled_timers = 0
        self._iterations_at_advance = 0
        self._task_count = 0
        self._watched: dict[int, Watched] = {}  # by descriptor
        self._free_descriptors: list[int] = []
        self._thread = threading.get_ident()

    # -- callbacks

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback in its process, first in, first out."""
        if self._closed:
            raise RuntimeError("the run is over")
        if context is None:
            context = copy_context()
        queue = context.get(current_queue, self.outside)
        handle = _Handle(callback, args, self, context)
        queue.ready.append(handle)
        if not queue.scheduled:
            self.wake(queue)
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback of this thread; others would make the run depend on real time."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a simulation has no threads: run the function at once instead")
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Set a timer, on the monotonic clock of the process's host."""
        if self._closed:
            raise RuntimeError("the run is over")
        if context is None:
            context = copy_context()
        queue = context.get(current_queue, self.outside)
        timer = _Timer(when, callback, args, self, context)
        if when == inf:
            due = when
        else:
            due = max(self.now, ceil((when - queue.boot_s) * TICKS_PER_S) / TICKS_PER_S)
        self._event_count += 1
        heappush(self._events, (due, self._draw(), self._event_count, queue, timer))
        return timer

    def time(self) -> float:
        """Return the monotonic clock of the current host."""
        return self.now + current_queue.get(self.outside).boot_s

    def _timer_handle_cancelled(self, handle: _Timer) -> None:
        if not handle._scheduled:
            return
        self._cancelled_timers += 1
        events = self._events
        if self._cancelled_timers > 1_000 and self._cancelled_timers * 2 > len(events):
            events[:] = [each for each in events if each[3] is None or not each[4]._cancelled]
            heapify(events)
            self._cancelled_timers = 0

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Call a function of the kernel or the network at a true virtual time on the grid."""
        self._event_count += 1
        heappush(self._events, (when, self._draw(), self._event_count, None, act))

    # -- processes

    def wake(self, queue: RunQueue) -> None:
        """Make an idle process runnable, perhaps a little later."""
        queue.scheduled = True
        drawn = self._draw()
        if drawn < LAG_SHARE and queue.lag_s:
            self._wake_at(on_grid(self.now + drawn / LAG_SHARE * queue.lag_s), queue)
        else:
            self._runnable.append(queue)

    def _wake_at(self, when: float, queue: RunQueue) -> None:
        self._event_count += 1
        queue.wake_up = number = self._event_count

        def wake() -> None:
            if queue.wake_up == number and not queue.stopped:
                self._runnable.append(queue)

        heappush(self._events, (when, self._draw(), number, None, wake))

    def stop_queue(self, queue: RunQueue) -> None:
        """Run no further callback of a process until `continue_queue`."""
        queue.stopped = queue.scheduled = True
        queue.wake_up = 0
        if queue in self._runnable:
            self._runnable.remove(queue)

    def continue_queue(self, queue: RunQueue) -> None:
        """Run the callbacks of a process again."""
        queue.stopped = False
        queue.scheduled = bool(queue.ready)
        if queue.ready:
            self._runnable.append(queue)

    # -- tasks

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        """Start a task of the current process, or of the given context's."""
        if self._closed:
            raise RuntimeError("the run is over")
        self._task_count += 1
        task = VirtualTask(
            coro,
            loop=self,
            name=f"task-{self._task_count}" if name is None else str(name),
            context=context,
        )
        queue = current_queue.get(self.outside) if context is None else None
        task.queue = queue or context.get(current_queue, self.outside)  # type: ignore[union-attr]
        return task

    def draw_hash(self) -> int:
        """Return a number for the hash of an object."""
        return self._draw_bits(60)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        """Call a function at once, in the next iteration; there is no thread."""
        future: asyncio.Future[_T] = self.create_future()

        def call() -> None:
            if future.done():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - an executor passes any error on
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(call)
        return future

    # -- running

    def _run_once(self) -> None:
        """Run iterations of processes until `stop`. asyncio calls this in a loop."""
        runnable = self._runnable
        while not self._stopping:
            if not runnable:
                self._advance()
                continue
            count = len(runnable)
            if count == 1:
                queue = runnable.pop()
            else:
                chosen = int(self._draw() * count)
                queue = runnable[chosen]
                runnable[chosen] = runnable[-1]
                runnable.pop()
            self._run_iteration(queue)

    def _run_iteration(self, queue: RunQueue) -> None:
        self.iterations += 1
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
            self._wake_at(on_grid(self.now + BUSY_PAUSE_S), queue)

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
        if now > self.now:
            self.now = now
            self._iterations_at_advance = self.iterations
        elif self.iterations - self._iterations_at_advance > MAX_ITERATIONS_PER_INSTANT:
            raise Livelock(f"processes run without end after {self.now:g} s")
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

    # -- sockets, in place of the selector

    def watch(self, socket: Watched) -> int:
        """Return the lowest free descriptor, by which `add_reader` finds a simulated socket."""
        if self._free_descriptors:
            descriptor = heappop(self._free_descriptors)
        else:
            descriptor = FIRST_DESCRIPTOR + len(self._watched)
        self._watched[descriptor] = socket
        return descriptor

    def unwatch(self, descriptor: int) -> None:
        """Free the descriptor of a socket that is closed."""
        del self._watched[descriptor]
        # A killed process leaves its transport behind; asyncio checks by the descriptor.
        self._transports.pop(descriptor, None)  # type: ignore[attr-defined]
        heappush(self._free_descriptors, descriptor)

    def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, copy_context())
        self._watched[fd].set_reader(handle)
        return handle

    def _remove_reader(self, fd: int) -> bool:
        socket = self._watched.get(fd)
        return socket is not None and bool(socket.set_reader(None))

    def _add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, copy_context())
        self._watched[fd].set_writer(handle)
        return handle

    def _remove_writer(self, fd: int) -> bool:
        socket = self._watched.get(fd)
        return socket is not None and bool(socket.set_writer(None))

    # -- what a selector loop has and this one does not need

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: object) -> NoReturn:
        raise NotImplementedError
