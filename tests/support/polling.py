"""Polling with a limit: a test that would wait forever fails and reports the awaited fact."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar, overload

import anyio
import pytest

T = TypeVar("T")

PATIENCE_S = 60.0
"""Timeout after which a test fails. No test asserts on time."""

LOOK_S = 0.01


@overload
async def eventually(look: Callable[[], Awaitable[T]], what: str) -> T: ...


@overload
async def eventually(look: Callable[[], T], what: str) -> T: ...


async def eventually(look: Callable[[], Any], what: str) -> Any:
    """Poll until the result is truthy, and return it. Fail after the timeout."""
    seen: Any = None
    with anyio.move_on_after(PATIENCE_S):
        while True:
            seen = look()
            if isawaitable(seen):
                seen = await seen
            if seen:
                return seen
            await anyio.sleep(LOOK_S)
    pytest.fail(f"waited {PATIENCE_S:g} s for {what}; it was {seen!r} to the end")


async def no_longer(look: Callable[[], Any], what: str) -> None:
    """Poll until the result is falsy. Fail after the timeout."""

    async def is_over() -> bool:
        seen = look()
        return not (await seen if isawaitable(seen) else seen)

    await eventually(is_over, f"the end of {what}")
