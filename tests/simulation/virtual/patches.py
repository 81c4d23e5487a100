"""What a program gets from the standard library inside `World.run`: time, randomness, names.

Each function is replaced where it lives, and only during the run. Modules that import a function
by its name before the run keep the real one; `random.*` is seeded instead of replaced, so its
functions are covered in any case.

`datetime.now` reads the real clock, because its type cannot be changed.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from anyio._backends._asyncio import AsyncIOBackend, CancelScope
from redis.asyncio.connection import AbstractConnection

from tests.simulation.virtual.hosts import Process
from tests.simulation.virtual.loop import VirtualLoop
from tests.simulation.virtual.network import Network
from tests.simulation.virtual.queues import current_queue
from tests.simulation.virtual.sockets import VirtualSocket

EPOCH_S = 1_700_000_000.0
"""Unix time at which every run begins."""

_T = TypeVar("_T")


def _process() -> Process | None:
    process = current_queue.get(None)
    return process if isinstance(process, Process) else None


class _Clocks:
    """The clocks of the current host."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._sleep = time.sleep
        self.monotonic = loop.time

    def monotonic_ns(self) -> int:
        return int(self._loop.time() * 1e9)

    def time(self) -> float:
        process = _process()
        skew_s = 0.0 if process is None else process.host.skew_s
        return EPOCH_S + self._loop.now + skew_s

    def sleep(self, seconds: float) -> None:
        """Sleep in other threads; here it would block every process."""
        if self._loop.is_own_thread():
            raise RuntimeError(f"time.sleep({seconds}) would block every simulated process")
        self._sleep(seconds)

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class _Names:
    """The names of the current host and process."""

    def __init__(self) -> None:
        self._host = socket.gethostname
        self._pid = os.getpid

    def gethostname(self) -> str:
        process = _process()
        return self._host() if process is None else process.host.name

    def getpid(self) -> int:
        process = _process()
        return self._pid() if process is None else process.pid


async def _run_at_once(
    cls: type[AsyncIOBackend],
    func: Callable[..., _T],
    args: tuple[Any, ...],
    abandon_on_cancel: bool = False,
    limiter: object = None,
) -> _T:
    """Call a function without a thread, after a checkpoint."""
    await cls.checkpoint()
    return func(*args)


def _scope_hash(scope: CancelScope) -> int:
    """Hash a scope by its task. anyio cancels the scopes of a set in its order."""
    return 0 if scope._host_task is None else hash(scope._host_task)


def _drawn_hash(loop: VirtualLoop) -> Callable[[object], int]:
    def drawn_hash(instance: object) -> int:
        attributes = vars(instance)
        if "_drawn_hash" not in attributes:
            attributes["_drawn_hash"] = loop.draw_hash()
        return int(attributes["_drawn_hash"])

    return drawn_hash


@contextmanager
def patched(
    loop: VirtualLoop, network: Network, rng: random.Random, hashed_by_seed: Sequence[type]
) -> Iterator[None]:
    """Replace the standard library's functions during the block.

    The instances of `hashed_by_seed` hash by a drawn number instead of their memory address, on
    which the order of a set would depend.
    """
    clocks, names = _Clocks(loop), _Names()
    replaced: list[tuple[Any, str, object]] = [
        (time, "time", clocks.time),
        (time, "time_ns", clocks.time_ns),
        (time, "monotonic", clocks.monotonic),
        (time, "monotonic_ns", clocks.monotonic_ns),
        (time, "perf_counter", clocks.monotonic),
        (time, "perf_counter_ns", clocks.monotonic_ns),
        (time, "sleep", clocks.sleep),
        (os, "urandom", rng.randbytes),
        (random, "_urandom", rng.randbytes),
        (os, "getpid", names.getpid),
        (socket, "gethostname", names.gethostname),
        (socket, "getaddrinfo", network.resolve),
        (socket, "socket", VirtualSocket),
        (AsyncIOBackend, "run_sync_in_worker_thread", classmethod(_run_at_once)),
        (CancelScope, "__hash__", _scope_hash),
        *((each, "__hash__", _drawn_hash(loop)) for each in (AbstractConnection, *hashed_by_seed)),
    ]
    before = random.getstate()
    with ExitStack() as stack:
        stack.callback(random.setstate, before)
        random.seed(rng.getrandbits(64))
        stack.enter_context(patch.object(VirtualSocket, "network", network, create=True))
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield
