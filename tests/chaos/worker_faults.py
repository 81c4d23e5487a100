"""Faults of workers: kill, stop, pause, replace. Each returns whether it found a target."""

import time
from random import Random

import anyio

from tests.chaos.target import FaultTarget, Kill


async def kill(target: FaultTarget, rng: Random) -> bool:
    """Kill a worker that runs sessions with SIGKILL, and restart it after a random delay."""
    away_s = rng.uniform(0, 2 * target.lease_s)
    async with target.worker(rng) as (slot, process):
        sessions = await target.sessions_of(process)
        if not sessions:
            return False
        target.note(f"kill {process.name}, which runs {len(sessions)}")
        if any(other.processes and target.is_free(other) for other in target.harness.fleet.slots):
            target.kills.append(Kill(time.time_ns() // 1_000_000, sessions))
        await target.harness.fleet.kill(process)
        await anyio.sleep(away_s)
        await target.harness.fleet.start(slot)
    return True


async def kill_all(target: FaultTarget, rng: Random) -> bool:
    """Kill every worker with SIGKILL."""
    slots = target.harness.fleet.slots
    async with target.lock(*(slot.name for slot in slots)):
        target.note("kill all workers")
        for slot in slots:
            for process in tuple(slot.processes):
                await target.harness.fleet.kill(process)
        await anyio.sleep(rng.uniform(0, 0.5))
        for slot in slots:
            await target.harness.fleet.start(slot)
    return True


async def stop(target: FaultTarget, rng: Random, *, twice: bool = False) -> bool:
    """Stop a worker with SIGTERM, and restart it."""
    async with target.worker(rng) as (slot, process):
        target.note(f"stop {process.name}{' twice' if twice else ''}")
        await target.harness.fleet.stop(process, twice=twice)
        await target.harness.fleet.start(slot)
    return True


async def stop_twice(target: FaultTarget, rng: Random) -> bool:
    """Stop a worker with SIGTERM, and send SIGTERM again while it releases its sessions."""
    return await stop(target, rng, twice=True)


async def stop_after_claim(target: FaultTarget, rng: Random) -> bool:
    """Stop a worker with SIGTERM as soon as it claims another session."""
    async with target.worker(rng) as (slot, process):
        known = len(await target.sessions_of(process))
        with anyio.move_on_after(3.0):
            while True:
                if len(await target.sessions_of(process)) > known:
                    break
                await anyio.sleep(0.002)
        target.note(f"stop {process.name} after a claim")
        await target.harness.fleet.stop(process)
        await target.harness.fleet.start(slot)
    return True


async def pause(target: FaultTarget, rng: Random, seconds: float) -> bool:
    """Pause a worker with SIGSTOP."""
    async with target.worker(rng) as (_, process):
        target.note(f"pause {process.name} for {seconds:.1f} s")
        with target.harness.fleet.paused(process):
            await anyio.sleep(seconds)
    return True


async def pause_long(target: FaultTarget, rng: Random) -> bool:
    """Pause a worker for longer than any lease."""
    return await pause(target, rng, target.long_pause_s)


async def pause_short(target: FaultTarget, rng: Random) -> bool:
    """Pause a worker for less than its lease."""
    return await pause(target, rng, rng.uniform(0.1, 0.9) * target.lease_s)


async def resume_alone(target: FaultTarget, rng: Random) -> bool:
    """Pause a worker until others own its sessions, and kill the others as it resumes.

    No other worker writes after the resumed worker.
    """
    alone_s = rng.uniform(0.5, 1.5) * target.lease_s
    slots = target.harness.fleet.slots
    async with target.lock(*(slot.name for slot in slots)):
        processes = [process for slot in slots for process in slot.processes]
        busy = [process for process in processes if await target.sessions_of(process)]
        if not busy:
            return False
        paused = rng.choice(busy)
        target.note(f"pause {paused.name} for {target.long_pause_s:.1f} s, kill the others")
        with target.harness.fleet.paused(paused):
            await anyio.sleep(target.long_pause_s)
            for process in processes:
                if process is not paused:
                    await target.harness.fleet.kill(process)
        await anyio.sleep(alone_s)
        for slot in slots:
            if not slot.processes:
                await target.harness.fleet.start(slot)
    return True


async def replace(target: FaultTarget, rng: Random) -> bool:
    """Start a process with the same worker id, then stop the previous one."""
    async with target.worker(rng) as (slot, old):
        new = await target.harness.fleet.start(slot)
        target.note(f"replace {old.name} by {new.name}")
        await anyio.sleep(rng.uniform(0, 2))
        await target.harness.fleet.stop(old)
    return True
