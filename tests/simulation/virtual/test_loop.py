"""The loop: virtual time, the order of callbacks, and what asyncio and anyio build on it."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.virtual.world import World

SEEDS = range(20)


def run(program: Callable[[], Awaitable[object]], seed: int = 1, limit_s: float = 1e6) -> World:
    """Run a program on a world of its own."""
    world = World(seed)

    async def call() -> None:
        await program()

    world.run(call, limit_s=limit_s)
    return world


def test_sleep_takes_virtual_time_only() -> None:
    began = time.monotonic()
    world = run(lambda: asyncio.sleep(100_000))
    assert 100_000 <= world.now() < 100_001
    assert time.monotonic() - began < 10_000


def test_call_soon_keeps_its_order() -> None:
    called: list[int] = []

    async def program() -> None:
        for number in range(100):
            asyncio.get_running_loop().call_soon(called.append, number)
        await asyncio.sleep(1)

    run(program)
    assert called == list(range(100))


def test_cancelled_callbacks_do_not_run() -> None:
    called: list[str] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(called.append, "soon").cancel()
        loop.call_later(1, called.append, "later").cancel()
        for _ in range(5_000):
            loop.call_later(10, called.append, "many").cancel()
        await asyncio.sleep(20)

    run(program)
    assert called == []


def _order_of_timers(delays: list[float], seed: int) -> list[int]:
    called: list[int] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for number, delay in enumerate(delays):
            loop.call_at(now + delay, called.append, number)
        await asyncio.sleep(max(delays) + 1)

    run(program, seed)
    return called


@pytest.mark.parametrize("seed", SEEDS)
def test_timers_run_in_the_order_of_their_times(seed: int) -> None:
    delays = random.Random(seed).sample([number / 1_000 for number in range(100)], 50)
    assert [delays[number] for number in _order_of_timers(delays, seed)] == sorted(delays)


def test_order_of_equal_timers_is_drawn() -> None:
    orders = {tuple(_order_of_timers([1.0] * 4, seed)) for seed in range(100)}
    assert len(orders) == 24, "every order of four timers"
    assert _order_of_timers([1.0] * 9, 5) == _order_of_timers([1.0] * 9, 5)


@given(st.lists(st.floats(0, 1e5, allow_subnormal=False), max_size=10), st.integers(0, 100))
def test_timer_is_never_early(delays: list[float], seed: int) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        for delay in delays:
            due = loop.time() + delay
            called = loop.create_future()
            loop.call_at(due, called.set_result, None)
            await called
            assert loop.time() >= due

    run(program, seed, limit_s=1e7)


@pytest.mark.parametrize("delay", [0, 1e-9, -1, 1e-6])
def test_code_that_spins_does_not_stop_the_clock(delay: float) -> None:
    async def program() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, event.set)
        while not event.is_set():
            await asyncio.sleep(delay)

    run(program)


def test_functions_for_threads_run_at_once() -> None:
    async def program() -> None:
        here = threading.get_ident()
        assert await anyio.to_thread.run_sync(threading.get_ident) == here
        assert await asyncio.to_thread(threading.get_ident) == here
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    run(program)


def test_call_of_another_thread_is_rejected() -> None:
    errors: list[RuntimeError] = []

    def call(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(print)
        except RuntimeError as error:
            errors.append(error)

    async def program() -> None:
        thread = threading.Thread(target=call, args=(asyncio.get_running_loop(),))
        thread.start()
        thread.join()

    run(program)
    assert "no threads" in str(errors[0])


def test_blocking_sleep_is_rejected() -> None:
    async def program() -> None:
        with pytest.raises(RuntimeError, match="block"):
            time.sleep(1)  # noqa: ASYNC251 - the subject

    run(program)


def test_task_group_cancels_its_tasks() -> None:
    ended: list[int] = []

    async def wait(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(number)
            ended.append(number)

    async def program() -> None:
        with anyio.move_on_after(10) as scope:
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(wait, number)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(3):
                await anyio.sleep(4)

    assert 17 <= run(program).now() < 17.1
    assert ended == list(range(5))


def _order_of_cancellation(seed: int) -> tuple[int, ...]:
    ended: list[int] = []

    async def wait(number: int, *, nested: bool) -> None:
        with anyio.CancelScope() if nested else anyio.fail_after(1_000):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)

    async def program() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(lambda n=number: wait(n, nested=n % 2 == 0))  # type: ignore[misc]
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()

    run(program, seed)
    return tuple(ended)


def test_order_of_cancellation_is_drawn() -> None:
    orders = [_order_of_cancellation(seed) for seed in SEEDS]
    assert orders == [_order_of_cancellation(seed) for seed in SEEDS]
    assert len(set(orders)) > 5


def test_reply_and_timeout_meet_in_one_iteration() -> None:
    """A future is done and its waiter cancelled, in both orders, before the waiter runs."""
    met: set[str] = set()

    async def program() -> None:
        loop = asyncio.get_running_loop()
        for number in range(200):
            called: list[str] = []
            waiter = loop.create_task(asyncio.sleep(100))
            waiter.add_done_callback(lambda _, called=called: called.append("waiter"))  # type: ignore[misc]
            loop.call_later(1, called.append, "one")
            loop.call_later(1 + number * 1e-5, called.append, "other")
            loop.call_later(1, waiter.cancel)
            await asyncio.wait([waiter])
            met.add("together" if called.index("waiter") == 2 else "apart")
            await asyncio.sleep(1)

    run(program)
    assert met == {"together", "apart"}


def test_dropped_generator_closes_in_its_process() -> None:
    closed: list[str] = []
    world = World(1)
    other = world.host("other")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1)
            closed.append(asyncio.current_task().queue.name)  # type: ignore[union-attr]

    async def drop() -> None:
        async for _ in numbers():
            break
        await asyncio.sleep(5)

    async def program() -> None:
        await other.start(drop, "dropper").wait()

    world.run(program, limit_s=10)
    assert closed == ["dropper"]


def test_tasks_have_equal_names_in_each_run() -> None:
    names: list[str] = []

    async def name() -> None:
        names.append(asyncio.current_task().get_name())  # type: ignore[union-attr]

    async def program() -> None:
        await asyncio.gather(name(), name())

    run(program)
    run(program)
    assert names[:2] == names[2:]
