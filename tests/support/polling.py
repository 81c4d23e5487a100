"""Waiting for facts: a test that would wait for ever fails instead, and says for what."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar, overload

import anyio
import pytest

T = TypeVar("T")

PATIENCE_S = 60.0
"""A test that has not seen what it waits for by then has failed; nothing is asserted on time."""

LOOK_S = 0.01


@overload
async def eventually(look: Callable[[], Awaitable[T]], what: str) -> T: ...


@overload
async def eventually(look: Callable[[], T], what: str) -> T: ...


async def eventually(look: Callable[[], Any], what: str) -> Any:
    """Look again and again until there is something; return it. Fails if it never is."""
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
    """Look again and again until there is nothing. Fails if there always is."""

    async def is_over() -> bool:
        seen = look()
        return not (await seen if isawaitable(seen) else seen)

    await eventually(is_over, f"the end of {what}")
