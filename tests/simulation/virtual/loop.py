"""A deterministic asyncio event loop: virtual time, many processes, a seeded order.

It is asyncio's own selector loop with another core (`scheduler.py`). Tasks, futures, transports,
servers and `sock_*` are asyncio's code; only the queue of callbacks, the timers and the watched
sockets are replaced. Simulated sockets (`sockets.py`) take the place of the selector.

Processes share the loop. A context variable names the process of a callback, and asyncio copies it
into every handle, so a callback always runs in the process that asked for it.

`asyncio.Task` hashes by its memory address, and anyio cancels the tasks of a scope in the order of
a set. Tasks of this loop hash by a number drawn from the seed.
"""

import asyncio
import random
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple
from weakref import WeakSet, WeakValueDictionary

from tests.simulation.virtual.queues import (
    RunQueue,
    VirtualHandle,
    VirtualTimer,
    current_queue,
)
from tests.simulation.virtual.scheduler import Scheduler

FIRST_DESCRIPTOR = 8

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


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
    """In place of a selector, which only `repr` of a transport asks."""

    def get_key(self, descriptor: int) -> NoReturn:
        """Know no descriptor."""
        raise KeyError(descriptor)

    def close(self) -> None:
        """Close nothing."""


class VirtualLoop(Scheduler, BaseSelectorEventLoop):
    """An event loop for the processes of all hosts. It owns no descriptor and no thread."""

    _asyncgens: WeakSet[AsyncGenerator[Any, Any]]
    _closed: bool
    _stopping: bool
    _transports: WeakValueDictionary[int, asyncio.Transport]

    def __init__(self, rng: random.Random) -> None:
        BaseSelectorEventLoop.__init__(self, _NoSelector())  # type: ignore[arg-type]
        Scheduler.__init__(self, rng)
        self.outside = RunQueue()
        """Callbacks that no process asked for."""
        self._draw_bits = rng.getrandbits
        self._generators: dict[int, Context] = {}  # by address: weak references end too early
        self._task_count = 0
        self._watched: dict[int, Watched] = {}  # by descriptor
        self._free_descriptors: list[int] = []
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        """Do not warn: a loop that never ran has nothing to close."""

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
        handle = VirtualHandle(callback, args, self, context)
        queue.ready.append(handle)
        if not queue.scheduled:
            self.wake(queue)
        return handle

    def is_own_thread(self) -> bool:
        """Return whether the caller runs in the simulation's thread."""
        return threading.get_ident() == self._thread

    def call_soon_threadsafe(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback of this thread; others would make the run depend on real time."""
        if not self.is_own_thread():
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
        timer = VirtualTimer(when, callback, args, self, context)
        self.add_timer(timer, queue)
        return timer

    def time(self) -> float:
        """Return the monotonic clock of the current host."""
        return self.now + current_queue.get(self.outside).boot_s

    def _timer_handle_cancelled(self, handle: VirtualTimer) -> None:
        if handle._scheduled:
            self.timer_cancelled()

    def _run_once(self) -> None:
        """Run iterations of processes until `stop`. asyncio calls this in a loop."""
        while not self._stopping:
            self.step()

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

    # -- async generators

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        self._asyncgens.add(agen)
        self._generators[id(agen)] = copy_context()

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """Close a generator that is not iterated to its end, in its own process."""
        self._asyncgens.discard(agen)
        if not self._closed:
            self._generators.pop(id(agen)).run(lambda: self.create_task(agen.aclose()))

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
        self._transports.pop(descriptor, None)  # a killed process has left it there
        heappush(self._free_descriptors, descriptor)

    def transport(self, descriptor: int) -> asyncio.Transport | None:
        """Return the transport that owns a descriptor."""
        return self._transports.get(descriptor)

    def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        handle = VirtualHandle(callback, args, self, copy_context())
        self._watched[fd].set_reader(handle)
        return handle

    def _remove_reader(self, fd: int) -> bool:
        socket = self._watched.get(fd)
        return socket is not None and bool(socket.set_reader(None))

    def _add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        handle = VirtualHandle(callback, args, self, copy_context())
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
