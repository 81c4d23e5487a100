"""Table of faults, by name."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, NamedTuple

from tests.chaos import provider_faults, redis_faults, worker_faults
from tests.chaos.target import FaultTarget
from worker.errors import TurnbusError


class Fault(NamedTuple):
    """A kind of fault."""

    weight: float
    """Relative frequency."""
    act: Callable[[FaultTarget, Random], Awaitable[bool]]
    """Injects the fault, waits and repairs; returns False if there was no target. It draws its
    choices from the random generator."""


FAULTS: Final = {
    "kill": Fault(10, worker_faults.kill),
    "kill-all": Fault(1, worker_faults.kill_all),
    "stop": Fault(3, worker_faults.stop),
    "stop-twice": Fault(1, worker_faults.stop_twice),
    "stop-after-claim": Fault(2, worker_faults.stop_after_claim),
    "replace": Fault(2, worker_faults.replace),
    "pause-long": Fault(2, worker_faults.pause_long),
    "pause-short": Fault(3, worker_faults.pause_short),
    "wake-alone": Fault(1, worker_faults.resume_alone),
    "redis-restart": Fault(2, redis_faults.restart),
    "redis-outage": Fault(1, redis_faults.outage),
    "redis-full": Fault(2, redis_faults.full),
    "redis-cut": Fault(3, redis_faults.cut),
    "client-kill": Fault(2, redis_faults.kill_clients),
    "lost-reply": Fault(6, redis_faults.lose_reply),
    "partition": Fault(3, redis_faults.partition),
    "script-flush": Fault(1, redis_faults.flush_scripts),
    "group-destroyed": Fault(1, redis_faults.destroy_group),
    "entry-deleted": Fault(1, redis_faults.delete_entry),
    "entries-trimmed": Fault(1, redis_faults.trim_entries),
    "orphaned": Fault(1, redis_faults.delete_entry_and_kill),
    "stt-cut": Fault(8, provider_faults.cut),
    "stt-cut-at-byte": Fault(5, provider_faults.cut_at_byte),
    "stt-stall": Fault(3, provider_faults.stall),
    "stt-outage": Fault(2, provider_faults.outage),
    "stt-503": Fault(1, provider_faults.answer_503),
    "stt-outage-long": Fault(1, provider_faults.long_outage),
}
"""Every fault, by name."""


def check_faults(names: tuple[str, ...]) -> None:
    """Raise TurnbusError for a name that is not in the table."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise TurnbusError(
            f"unknown faults: {', '.join(unknown)}; the faults are {', '.join(FAULTS)}"
        )
