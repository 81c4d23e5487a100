"""Faults of workers: kill, stop, pause, replace. Each returns whether it found a target."""

from random import Random

import anyio

from tests.chaos.harness import ChaosHarness, Kill, now_ms


async def kill(harness: ChaosHarness, rng: Random) -> bool:
    """Kill a worker that runs sessions with SIGKILL, and restart it after a random delay."""
    away_s = rng.uniform(0, 2 * harness.lease_s)
    async with harness.worker(rng) as (slot, process):
        sessions = await harness.sessions_of(process)
        if not sessions:
            return False
        harness.note(f"kill {process.name}, which runs {len(sessions)}")
        if any(other.processes and harness.is_free(other) for other in harness.fleet.slots):
            harness.kills.append(Kill(now_ms(), sessions))
        await harness.fleet.kill(process)
        await anyio.sleep(away_s)
        await harness.fleet.start(slot)
    return True


async def kill_all(harness: ChaosHarness, rng: Random) -> bool:
    """Kill every worker with SIGKILL."""
    slots = harness.fleet.slots
    async with harness.lock(*(slot.name for slot in slots)):
        harness.note("kill all workers")
        for slot in slots:
            for process in tuple(slot.processes):
                await harness.fleet.kill(process)
        await anyio.sleep(rng.uniform(0, 0.5))
        for slot in slots:
            await harness.fleet.start(slot)
    return True


async def stop(harness: ChaosHarness, rng: Random, *, twice: bool = False) -> bool:
    """Stop a worker with SIGTERM, and restart it."""
    async with harness.worker(rng) as (slot, process):
        harness.note(f"stop {process.name}{' twice' if twice else ''}")
        await harness.fleet.stop(process, twice=twice)
        await harness.fleet.start(slot)
    return True


async def stop_twice(harness: ChaosHarness, rng: Random) -> bool:
    """Stop a worker with SIGTERM, and send SIGTERM again while it releases its sessions."""
    return await stop(harness, rng, twice=True)


async def stop_after_claim(harness: ChaosHarness, rng: Random) -> bool:
    """Stop a worker with SIGTERM as soon as it claims another session."""
    async with harness.worker(rng) as (slot, process):
        known = len(await harness.sessions_of(process))
        with anyio.move_on_after(3.0):
            while True:
                if len(await harness.sessions_of(process)) > known:
                    break
                await anyio.sleep(0.002)
        harness.note(f"stop {process.name} after a claim")
        await harness.fleet.stop(process)
        await harness.fleet.start(slot)
    return True


async def pause(harness: ChaosHarness, rng: Random, seconds: float) -> bool:
    """Pause a worker with SIGSTOP."""
    async with harness.worker(rng) as (_, process):
        harness.note(f"pause {process.name} for {seconds:.1f} s")
        with harness.fleet.paused(process):
            await anyio.sleep(seconds)
    return True


async def pause_long(harness: ChaosHarness, rng: Random) -> bool:
    """Pause a worker for longer than any lease."""
    return await pause(harness, rng, harness.long_pause_s)


async def pause_short(harness: ChaosHarness, rng: Random) -> bool:
    """Pause a worker for less than its lease."""
    return await pause(harness, rng, rng.uniform(0.1, 0.9) * harness.lease_s)


async def resume_alone(harness: ChaosHarness, rng: Random) -> bool:
    """Pause a worker until others own its sessions, and kill the others as it resumes.

    No other worker writes after the resumed worker.
    """
    alone_s = rng.uniform(0.5, 1.5) * harness.lease_s
    slots = harness.fleet.slots
    async with harness.lock(*(slot.name for slot in slots)):
        processes = [process for slot in slots for process in slot.processes]
        busy = [process for process in processes if await harness.sessions_of(process)]
        if not busy:
            return False
        paused = rng.choice(busy)
        harness.note(f"pause {paused.name} for {harness.long_pause_s:.1f} s, kill the others")
        with harness.fleet.paused(paused):
            await anyio.sleep(harness.long_pause_s)
            for process in processes:
                if process is not paused:
                    await harness.fleet.kill(process)
        await anyio.sleep(alone_s)
        for slot in slots:
            if not slot.processes:
                await harness.fleet.start(slot)
    return True


async def replace(harness: ChaosHarness, rng: Random) -> bool:
    """Start a process with the same worker id, then stop the previous one."""
    async with harness.worker(rng) as (slot, old):
        new = await harness.fleet.start(slot)
        harness.note(f"replace {old.name} by {new.name}")
        await anyio.sleep(rng.uniform(0, 2))
        await harness.fleet.stop(old)
    return True
