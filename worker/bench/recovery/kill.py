"""Measures the takeover after SIGKILL of a worker whose sessions are inside a turn."""

import signal
import time
from typing import Final, NamedTuple

from schemas.turns import TurnUpdate
from worker.bench.recovery.harness import RecoveryHarness, until
from worker.bench.recovery.plan import RecoveryPlan
from worker.bench.recovery.producer import ProducerSession

_WORDS: Final = 1_000
"""Number of queued words: enough that the turn stays open until the producer stops it."""

_SHOWN: Final = 5
"""Minimum number of words published before the kill."""


class KillResult(NamedTuple):
    """Results of one kill, in ms since it, a value per session."""

    connected_ms: list[float]
    """Time until the STT server accepted the replacement socket."""
    audio_ms: list[float]
    """Time until the STT server received audio on it."""


async def kill(
    rig: RecoveryHarness, plan: RecoveryPlan, name: str
) -> tuple[KillResult, list[ProducerSession]]:
    """Kill a worker while another one runs."""
    count = plan.kill_sessions
    async with rig.worker(f"{name}-a", count) as owner:
        lines = await rig.lines(name, count)
        for line in lines:
            line.say(_WORDS)
        async with rig.standby_worker(f"{name}-b", count):
            await until(lambda: all(_shown(rig, line) for line in lines), "a turn did not begin")
            killed_at = time.monotonic()
            owner.signal(signal.SIGKILL)
            sockets = await rig.replacements(lines, killed_at)
            for line in lines:
                line.stop_audio()
                line.pause(1_000)
                line.end()
            await rig.all_ended(lines)
    connected = [(socket.opened_at - killed_at) * 1_000 for socket in sockets]
    audio_at = [socket.first_audio_at or socket.opened_at for socket in sockets]
    return KillResult(connected, [(at - killed_at) * 1_000 for at in audio_at]), lines


def _shown(rig: RecoveryHarness, line: ProducerSession) -> bool:
    return sum(isinstance(event, TurnUpdate) for event in rig.events(line)) >= _SHOWN
