"""Virtual time: an event loop whose clock moves only when no callback is ready.

A minute of waiting takes no time, and the same program always runs in the same order.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any
from unittest.mock import patch

BEGAN_S = 1_000.0
"""Monotonic time at the start, in seconds."""

BEGAN_AT = 1_700_000_000.0
"""Wall-clock time at the start, in seconds."""


class Clock:
    """The monotonic clock and the wall clock."""

    def __init__(self) -> None:
        self.now = BEGAN_S

    def monotonic(self) -> float:
        """Return the monotonic clock's time."""
        return self.now

    def time(self) -> float:
        """Return the wall clock's time."""
        return BEGAN_AT + self.now - BEGAN_S


class _Selector(selectors.SelectSelector):
    """A selector that moves the clock instead of waiting."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits, and no timer is set")
        self._clock.now += max(0.0, timeout)
        return super().select(0)


def run(program: Coroutine[Any, Any, None]) -> None:
    """Run a program in virtual time."""
    clock = Clock()

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(_Selector(clock))

    with (
        patch("time.monotonic", clock.monotonic),
        patch("time.time", clock.time),
        asyncio.Runner(loop_factory=loop) as runner,
    ):
        runner.run(program)
