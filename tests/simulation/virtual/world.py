"""The world of a simulation: one seed, one event loop, hosts and their network.

    world = World(seed=1)
    server = world.host("server")

    async def program() -> None:
        server.start(serve)
        await anyio.sleep(3_600)

    world.run(program, limit_s=7_200)
    print(world.log.digest)

Two runs of a seed have equal logs. Two things of the interpreter have to be equal as well, because
the order of a set depends on them: the hashes of strings (`fix_hashes`), and the addresses of
objects that hash by them. asyncio's tasks, anyio's scopes and redis-py's connections hash by the
seed; a program names further classes in `hashed_by_seed`. `assert_repeats` finds what is left: it
runs a seed again with other addresses.
"""

import asyncio
import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from anyio._backends._asyncio import _task_states

from tests.simulation.virtual.hosts import Host, Process, Program
from tests.simulation.virtual.log import EventLog
from tests.simulation.virtual.loop import VirtualLoop, VirtualTask
from tests.simulation.virtual.network import Network
from tests.simulation.virtual.patches import patched
from tests.simulation.virtual.queues import TICKS_PER_S, current_queue

MAX_BOOT_S = 100_000
"""Maximum difference between the monotonic clocks of two hosts."""

CLOSES = 100
"""Maximum number of `finally` blocks of one coroutine that may wait when it is discarded."""


class World:
    """Hosts, their network and their clocks, drawn from a seed."""

    def __init__(self, seed: int | str, *, hashed_by_seed: Sequence[type] = ()) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed}: plan")
        """For the plan of a run. The network and the programs have generators of their own."""
        self.loop = VirtualLoop(random.Random(f"{seed}: order"))
        self.log = EventLog(lambda: (self.loop.now, self.loop.iterations))
        self.network = Network(self.loop, self.log, random.Random(f"{seed}: network"))
        self.hosts: list[Host] = []
        self.errors: list[str] = []
        """Errors that asyncio reported: of callbacks, and of tasks whose result was never read."""
        self._boots = random.Random(f"{seed}: boots")
        self._hashed_by_seed = hashed_by_seed
        self.control = self.host("control")
        """The host of the program of `run`."""

    def host(self, name: str) -> Host:
        """Add a host."""
        number = len(self.hosts) + 1
        address = f"10.0.{number >> 8}.{number & 255}"
        boot_s = 1_000.0 + self._boots.randrange(MAX_BOOT_S * TICKS_PER_S) / TICKS_PER_S
        host = Host(self.network, name, address, boot_s)
        self.hosts.append(host)
        self.network.add(host)
        return host

    def now(self) -> float:
        """Return the true virtual time since the start, in seconds."""
        return self.loop.now

    def run(self, program: Program, *, limit_s: float) -> None:
        """Run a program on the control host in virtual time, and then discard every process.

        Raises what the program raises, `Deadlock` and `TimeLimit`. What the processes leave behind
        must be checked inside the program.
        """
        self.loop.limit_s = limit_s
        self.loop.set_exception_handler(self._record)
        entropy = random.Random(f"{self.seed}: programs")
        with patched(self.loop, self.network, entropy, self._hashed_by_seed), _without_collector():
            try:
                main = self.control.start(program).main
                self.loop.run_until_complete(main)
            finally:
                self.log.finish()
                with _silence():
                    self._discard()

    def _record(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        task = context.get("task") or context.get("future")
        queue = task.queue if isinstance(task, VirtualTask) else current_queue.get(None)
        if "handle" in context:
            queue = context["handle"]._context.get(current_queue)
        name = queue.host.name if isinstance(queue, Process) else "world"
        self.errors.append(f"{name}: {context.get('message')}: {error!r}")
        self.log.note(name, f"error reported: {type(error).__name__}")

    def _discard(self) -> None:
        """Close every coroutine that is left. Nothing it does has an effect on the world."""
        tasks = asyncio.all_tasks(self.loop)
        for host in self.hosts:
            for process in list(host.processes):
                process.lose_power()
            for process in host.remains:
                tasks.update(process.remains)
                for transport in process.transports:
                    # Its finalizer, and its users' ones, then find nothing to close.
                    transport._closing = True  # type: ignore[attr-defined]
                    transport._sock = None  # type: ignore[attr-defined]
                process.transports.clear()
                process.remains.clear()
                process.ready.clear()
        self.loop.set_exception_handler(lambda *_: None)
        self.loop.close()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_coro())
        for task in list(_task_states):  # each state refers to its task, so both would stay
            if task.get_loop() is self.loop:
                del _task_states[task]


def _close(coroutine: Any) -> None:
    """Close a coroutine, also one that waits again in its `finally` blocks."""
    for _ in range(CLOSES):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - the code of a discarded process has no effect
            continue
        return


@contextmanager
def _silence() -> Iterator[None]:
    """Drop logs, warnings and errors of finalizers during the block."""
    hook, level = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = lambda _: None
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.disable(level)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Collect no cycles during the block: finalizers would run at places that depend on the past.

    What exists before the block is set aside, so that a collection at its end is short.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def fix_hashes() -> None:
    """Start this interpreter again with fixed hashes of strings, unless it has them."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, sys.orig_argv)


def assert_repeats(run: Callable[[], EventLog]) -> None:
    """Fail unless two runs have equal logs, although their objects have other addresses."""
    first = run()
    # Holes of all sizes at random places: the second run's objects are allocated in them.
    blocks = [bytes(size) for size in range(16, 512, 16) for _ in range(1_000)]
    random.shuffle(blocks)
    del blocks[::2]
    second = run()
    for one, other in zip(first.lines, second.lines, strict=False):
        assert one == other, f"the runs differ at:\n{one}\n{other}"
    assert first.digest == second.digest, "the runs differ after their last common line"
