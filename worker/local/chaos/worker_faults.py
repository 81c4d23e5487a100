"""Faults of workers: killed, stopped, paused, replaced. Each says whether it broke anything."""

import time

import anyio

from worker.local.chaos.target import Kill, Target


async def kill(target: Target) -> bool:
    """Kill a worker with SIGKILL, and start it again a while later."""
    slot = target.slot()
    if slot is None:
        return False
    with target.hold(slot.name):
        life = slot.lives[-1]
        sessions = await target.sessions_of(life)
        target.note(f"kill {life.name}, which runs {len(sessions)}")
        others = [other for other in target.rig.fleet.slots if other.lives and other is not slot]
        if any(other.name not in target.held for other in others):
            target.kills.append(Kill(time.time_ns() // 1_000_000, sessions))
        await target.rig.fleet.kill(life)
        await anyio.sleep(target.rng.uniform(0, 2 * target.lease_s))
        await target.rig.fleet.start(slot)
    return True


async def kill_all(target: Target) -> bool:
    """Kill every worker with SIGKILL."""
    slots = target.rig.fleet.slots
    with target.hold(*(slot.name for slot in slots)) as free:
        if not free:
            return False
        target.note("kill all workers")
        for slot in slots:
            for life in tuple(slot.lives):
                await target.rig.fleet.kill(life)
        await anyio.sleep(target.rng.uniform(0, 0.5))
        for slot in slots:
            await target.rig.fleet.start(slot)
    return True


async def stop(target: Target, *, twice: bool = False) -> bool:
    """Stop a worker with SIGTERM, and start it again."""
    slot = target.slot()
    if slot is None:
        return False
    with target.hold(slot.name):
        target.note(f"stop {slot.lives[-1].name}{' twice' if twice else ''}")
        await target.rig.fleet.stop(slot.lives[-1], twice=twice)
        await target.rig.fleet.start(slot)
    return True


async def stop_twice(target: Target) -> bool:
    """Stop a worker with SIGTERM, and once more while it hands its sessions on."""
    return await stop(target, twice=True)


async def stop_after_claim(target: Target) -> bool:
    """SIGTERM as soon as the worker has one session more."""
    slot = target.slot()
    if slot is None:
        return False
    with target.hold(slot.name):
        life = slot.lives[-1]
        known = len(await target.sessions_of(life))
        with anyio.move_on_after(3.0):
            while True:
                if len(await target.sessions_of(life)) > known:
                    break
                await anyio.sleep(0.002)
        target.note(f"stop {life.name} after a claim")
        await target.rig.fleet.stop(life)
        await target.rig.fleet.start(slot)
    return True


async def pause(target: Target, seconds: float) -> bool:
    """Pause a worker with SIGSTOP."""
    slot = target.slot()
    if slot is None:
        return False
    with target.hold(slot.name):
        target.note(f"pause {slot.lives[-1].name} for {seconds:.1f} s")
        with target.rig.fleet.paused(slot.lives[-1]):
            await anyio.sleep(seconds)
    return True


async def pause_long(target: Target) -> bool:
    """Pause a worker for longer than any lease."""
    return await pause(target, target.long_pause_s)


async def pause_short(target: Target) -> bool:
    """Pause a worker for less than its lease."""
    return await pause(target, target.rng.uniform(0.1, 0.9) * target.lease_s)


async def wake_alone(target: Target) -> bool:
    """Pause a worker that runs sessions until others run them, and kill those as it wakes.

    Whatever it still writes then, nobody else writes after it.
    """
    slots = target.rig.fleet.slots
    with target.hold(*(slot.name for slot in slots)) as free:
        lives = [life for slot in slots for life in slot.lives]
        busy = [life for life in lives if await target.sessions_of(life)]
        if not free or not busy:
            return False
        sleeper = target.rng.choice(busy)
        target.note(f"pause {sleeper.name} for {target.long_pause_s:.1f} s, kill the others")
        with target.rig.fleet.paused(sleeper):
            await anyio.sleep(target.long_pause_s)
            for life in lives:
                if life is not sleeper:
                    await target.rig.fleet.kill(life)
        await anyio.sleep(target.rng.uniform(0.5, 1.5) * target.lease_s)
        for slot in slots:
            if not slot.lives:
                await target.rig.fleet.start(slot)
    return True


async def replace(target: Target) -> bool:
    """Start a process of the same worker id, then stop the one before."""
    slot = target.slot()
    if slot is None:
        return False
    with target.hold(slot.name):
        old = slot.lives[-1]
        new = await target.rig.fleet.start(slot)
        target.note(f"replace {old.name} by {new.name}")
        await anyio.sleep(target.rng.uniform(0, 2))
        await target.rig.fleet.stop(old)
    return True
