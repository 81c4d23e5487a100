"""Hosts and their processes: they crash, lose power, pause, and have wrong clocks."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from tests.simulation.virtual.loop import VirtualTask
from tests.simulation.virtual.queues import RunQueue, current_queue

if TYPE_CHECKING:
    from tests.simulation.virtual.network import Network
    from tests.simulation.virtual.sockets import VirtualSocket

Program = Callable[[], Coroutine[Any, Any, object]]


class Process(RunQueue):
    """One incarnation of a program on a host: its tasks, timers and sockets.

    A killed process runs no further callback, not even a `finally` block. Its coroutines are kept
    until the end of the run, so that the interpreter does not close them.
    """

    def __init__(self, host: "Host", number: int, name: str, program: Program) -> None:
        super().__init__(host.boot_s)
        self.host = host
        self.name = name
        self.pid = number
        self.done = False
        """Whether the process has ended or was killed."""
        self.exception: BaseException | None = None
        """What ended the program; None if it returned, runs or was killed."""
        self.leaked_tasks: list[str] = []
        """Tasks that still ran when the program returned."""
        self.leaked_sockets: list[str] = []
        """Sockets that were still open when the program returned."""
        self.sockets: dict[int, VirtualSocket] = {}
        self.remains: list[asyncio.Task[Any]] = []
        """Tasks that a kill has stopped in the middle."""
        self.transports: list[asyncio.Transport] = []
        """Transports that a kill has left open."""
        self._waiters: list[asyncio.Future[None]] = []
        # A context that is as empty as in a new interpreter.
        self._context = context = Context()
        context.run(current_queue.set, self)
        self.timers_first = host.network.loop.draw_hash() % 2 == 0
        self.main = host.network.loop.create_task(_call(program), name=name, context=context)
        self.main.add_done_callback(self._returned, context=context)

    def kill(self) -> None:
        """Stop at once, as by SIGKILL; the kernel closes the sockets."""
        if self.done:
            return
        self.host.network.log.note(self.host.name, f"{self.name} killed")
        self._stop()
        for each in list(self.sockets.values()):
            each.close()

    def kill_after(self, callbacks: int) -> None:
        """Kill the process after it ran so many further callbacks (steps between two awaits)."""
        self.callbacks_left = callbacks
        self.on_callbacks_done = self.kill

    def lose_power(self) -> None:
        """Stop at once; peers are not informed."""
        if self.done:
            return
        self._stop()
        network = self.host.network
        for each in list(self.sockets.values()):
            each.silent = True
            if each.listening:
                network.stop_listening(each)
                for connection in each.accepted:
                    connection.silent = connection.closed = True
                    self.host.silent.append(connection)
            each.release()
            self.host.silent.append(each)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Let a function run in the process, as a signal handler would."""
        self.host.network.loop.call_soon(callback, context=self._context)

    async def wait(self) -> None:
        """Wait until the process has ended."""
        if not self.done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def open_descriptor(self, opened: "VirtualSocket") -> int:
        """Give a socket a descriptor."""
        descriptor = self.host.network.loop.watch(opened)
        self.sockets[descriptor] = opened
        return descriptor

    def close_descriptor(self, descriptor: int) -> None:
        """Free a descriptor."""
        del self.sockets[descriptor]
        self.host.network.loop.unwatch(descriptor)

    def _stop(self) -> None:
        self.done = True
        loop = self.host.network.loop
        loop.stop_queue(self)
        self.remains = [
            task
            for task in asyncio.all_tasks(loop)
            if isinstance(task, VirtualTask) and task.queue is self
        ]
        transports = (loop.transport(descriptor) for descriptor in self.sockets)
        self.transports = [each for each in transports if each is not None]
        self.host.forget(self)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _returned(self, main: asyncio.Task[object]) -> None:
        """End the process as `asyncio.run` does: cancel what still runs, and wait for that."""
        if not main.cancelled():
            self.exception = main.exception()
        rest = sorted(
            (
                task
                for task in asyncio.all_tasks(self.host.network.loop)
                if isinstance(task, VirtualTask) and task.queue is self
            ),
            key=hash,
        )
        self.leaked_tasks = sorted(task.get_name() for task in rest)
        for task in rest:
            task.cancel()
        ended = asyncio.gather(*rest, return_exceptions=True)
        ended.add_done_callback(self._exit)

    def _exit(self, _: object) -> None:
        self.leaked_sockets = [repr(each) for each in self.sockets.values()]
        how = "returned" if self.exception is None else f"failed: {type(self.exception).__name__}"
        self.host.network.log.note(self.host.name, f"{self.name} {how}")
        self._stop()
        for each in list(self.sockets.values()):
            each.close()


async def _call(program: Program) -> object:
    return await program()


class Host:
    """A machine. `World.host` makes it."""

    def __init__(self, network: "Network", name: str, address: str, boot_s: float) -> None:
        self.network = network
        self.name = name
        self.address = address
        self.boot_s = boot_s
        self.skew_s = 0.0
        """Error of the wall clock."""
        self.up = True
        """Whether the host has power."""
        self.paused = False
        self.processes: list[Process] = []
        """The processes that run."""
        self.remains: list[Process] = []
        """The processes that ended."""
        self.silent: list[VirtualSocket] = []
        """Sockets that a power loss has taken."""

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    def start(self, program: Program, name: str = "") -> Process:
        """Start a process; a host without power boots first."""
        if not self.up:
            self._boot()
        self.network.log.note(self.name, f"{name or self.name} started")
        process = Process(self, self.network.next_process_id(), name or self.name, program)
        self.processes.append(process)
        if self.paused:
            self.network.loop.stop_queue(process)
        return process

    def crash(self) -> None:
        """Kill every process. The peers' connections end, because the kernel closes them.

        A crash by another process falls between two iterations. `crash_after` reaches the points
        within one.
        """
        self.network.log.note(self.name, "crash")
        for process in list(self.processes):
            process.kill()

    def crash_after(self, callbacks: int) -> None:
        """Crash when one of the processes has run so many further callbacks."""
        for process in self.processes:
            process.callbacks_left = callbacks
            process.on_callbacks_done = self.crash

    def vanish(self) -> None:
        """Lose power: peers see only silence, until the host starts a process again."""
        self.network.log.note(self.name, "power lost")
        self.up = False
        self.paused = False
        for process in list(self.processes):
            process.lose_power()

    def pause(self) -> None:
        """Stop every process, as by SIGSTOP; the kernel still receives and acknowledges."""
        if not self.paused:
            self.network.log.note(self.name, "paused")
            self.paused = True
            for process in self.processes:
                self.network.loop.stop_queue(process)

    def resume(self) -> None:
        """Let every process continue."""
        if self.paused:
            self.network.log.note(self.name, "resumed")
            self.paused = False
            for process in self.processes:
                self.network.loop.continue_queue(process)

    def forget(self, process: Process) -> None:
        """Move a process to the remains."""
        self.processes.remove(process)
        self.remains.append(process)

    def _boot(self) -> None:
        self.up = True
        silent, self.silent = self.silent, []
        for each in silent:
            each.silent = False
            if each.incoming is not None:
                each.incoming.retry()
