"""Measures the takeover after SIGTERM to a worker whose sessions are between turns."""

import signal
import time
from typing import Any, Final, NamedTuple

import anyio

from schemas.keys import GROUP
from schemas.turns import TurnEnd
from tests.chaos.fleet import WorkerProcess
from worker.bench.recovery.harness import RecoveryHarness, until
from worker.bench.recovery.plan import RecoveryPlan
from worker.bench.recovery.producer import ProducerSession
from worker.errors import TurnbusError

_LOOK_S: Final = 0.01


class DrainResult(NamedTuple):
    """Results of one SIGTERM, in ms since the signal."""

    exit_ms: float
    """Time until the process exited."""
    owned_ms: float
    """Time until the last session had an owner again."""
    connected_ms: float
    """Time until the last session had a socket again and sent audio on it."""


async def drain(
    rig: RecoveryHarness, plan: RecoveryPlan, name: str
) -> tuple[DrainResult, list[ProducerSession]]:
    """Stop a worker while another one runs."""
    count = plan.drain_sessions
    async with rig.worker(f"{name}-a", count) as owner:
        lines = await rig.lines(name, count)
        for line in lines:
            line.say(2)
        await until(lambda: all(_turns(rig, line) for line in lines), "a turn did not end")
        async with rig.standby_worker(f"{name}-b", count):
            began = time.monotonic()
            owner.signal(signal.SIGTERM)
            times: dict[str, float] = {}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_exit, owner, times)
                tasks.start_soon(_owned, rig, f"{name}-b-", count, times)
                sockets = await rig.replacements(lines, began)
            for line in lines:
                line.say(2)
                line.pause(1_000)
                line.end()
            await rig.all_ended(lines)
    connected = max(socket.first_audio_at or socket.opened_at for socket in sockets)
    exit_ms, owned_ms = ((times[what] - began) * 1_000 for what in ("exit", "owned"))
    return DrainResult(exit_ms, owned_ms, (connected - began) * 1_000), lines


def _turns(rig: RecoveryHarness, line: ProducerSession) -> int:
    return sum(isinstance(event, TurnEnd) for event in rig.events(line))


async def _exit(owner: WorkerProcess, times: dict[str, float]) -> None:
    """Wait until the process exits. Raises TurnbusError if the exit code is not 0."""
    if code := await owner.over():
        raise TurnbusError(f"{owner.name} exited with {code}; its last log lines:\n{owner.tail()}")
    times["exit"] = time.monotonic()


async def _owned(rig: RecoveryHarness, successor: str, count: int, times: dict[str, float]) -> None:
    """Wait until the pending list assigns every session to the other worker."""
    owned = 0
    while owned < count:
        await anyio.sleep(_LOOK_S)
        pending: Any = await rig.redis.xpending(rig.keys.sessions, GROUP)
        owned = sum(
            consumer["pending"]
            for consumer in pending["consumers"]
            if consumer["name"].decode().startswith(successor)
        )
    times["owned"] = time.monotonic()
