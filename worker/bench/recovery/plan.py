"""The plan of a recovery benchmark."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

What = Literal["kill", "drain", "cut"]
WHAT: Final[tuple[What, ...]] = ("kill", "drain", "cut")

LATENCY_MS: Final = 150.0
"""How late the STT server speaks."""


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run."""

    what: tuple[What, ...] = WHAT
    kill_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 50
    """Inside a turn when their worker is killed."""
    drain_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 200
    """Between turns when their worker is told to stop."""
    trials: Annotated[int, Meta(ge=1, le=500)] = 20
    """Sockets cut in each scene; as many sessions without a cut run beside them."""
    chunk_ms: Annotated[int, Meta(ge=10, le=300, multiple_of=10)] = 100
    repeat: Annotated[int, Meta(ge=1, le=100)] = 1
