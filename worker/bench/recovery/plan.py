"""Plan of a recovery benchmark."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

What = Literal["kill", "drain", "cut"]
WHAT: Final[tuple[What, ...]] = ("kill", "drain", "cut")

LATENCY_MS: Final = 150.0
"""Event latency of the STT server, in milliseconds."""


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a recovery benchmark."""

    what: tuple[What, ...] = WHAT
    kill_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 50
    """Number of sessions inside a turn when their worker is killed."""
    drain_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 200
    """Number of sessions between turns when their worker is stopped."""
    trials: Annotated[int, Meta(ge=1, le=500)] = 20
    """Number of sockets cut in each scenario; each has a twin session without a cut."""
    chunk_ms: Annotated[int, Meta(ge=10, le=300, multiple_of=10)] = 100
    repeat: Annotated[int, Meta(ge=1, le=100)] = 1
