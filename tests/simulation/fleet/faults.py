"""What each kind of fault does to the fleet.

A fault begins by a plain call, so that it can strike in the middle of a script call of Redis. It
returns how it is repaired: a function that runs after the fault's duration.
"""

import errno
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import anyio

from schemas.keys import GROUP
from tests.simulation.fleet.fleet import Fleet
from tests.simulation.fleet.plan import MAX_LATE_S, Fault, FaultKind
from tests.simulation.fleet.providers import PORT, ProviderHost
from tests.simulation.fleet.redis_host import RedisHost
from tests.simulation.fleet.workers import Slot
from tests.simulation.redis.resp import CommandError
from tests.simulation.virtual.network import LATENCY_S
from tests.simulation.virtual.pipes import Mark, error_of
from worker.bus.clock import MAX_AHEAD_S

Repair = Callable[[], Awaitable[None]]
Begin = Callable[[Fleet, Fault, Slot], Repair | None]
"""Begins a fault at a worker, or elsewhere; returns None if it found no target."""

HARD_STOP_S: Final = 6.0
"""Time after the drain timeout after which `turnbus run` exits anyway."""

CUT_WITHIN_BYTES: Final = 2_000

SLOW_REDIS_S: Final = 0.1
"""Maximum latency to a slow Redis: late connections overtake each other."""
MAX_JUMPS_S: Final = MAX_AHEAD_S / 2.5
"""Maximum sum of a Redis clock's jumps. A worker takes ids that are further ahead for no times."""

LATE_S: Final = (0.8, 2.0)
"""Latency of what a lost connection still delivers."""

MOVE_PAUSES_S: Final = (0.001, 0.01, 0.1)
"""Pauses between two keys of a slot that moves."""

REDIRECTED_S: Final = 1.0
"""Time after a slot has moved until each worker has followed it."""

MAX_REPLICA_LAG_S: Final = 1.0
"""Maximum time by which a replica is behind its master."""


def _at_once() -> Repair:
    async def nothing() -> None:
        return

    return nothing


def _later(*acts: Callable[[], object]) -> Repair:
    async def repair() -> None:
        for act in acts:
            act()

    return repair


def _crash(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    if not slot.running:
        return None
    if fault.steps and slot.process is not None:
        slot.process.kill_after(fault.steps)
    else:
        slot.host.crash()

    async def restart() -> None:
        if slot.process is not None:
            slot.process.kill()  # it had fewer steps to do
        slot.host.resume()
        slot.start()

    return restart


def _vanish(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    if not slot.running:
        return None
    slot.host.vanish()
    return _later(slot.start)


def _pause(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    if not slot.running or slot.host.paused:
        return None
    slot.host.pause()
    fleet.disturb(slot, fault.seconds)
    return _later(slot.host.resume)


def _stop(fleet: Fleet, fault: Fault, slot: Slot, *, twice: bool = False) -> Repair | None:
    process, worker = slot.process, slot.worker
    if not slot.running or process is None or worker is None:
        return None
    worker.stop()

    async def restart() -> None:
        if twice:
            worker.stop()
        with anyio.move_on_after(fleet.plan.drain_s + HARD_STOP_S):
            await process.wait()
        process.kill()
        slot.start()

    return restart


def _skew(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    slot.host.skew_s = fault.seconds
    return _at_once()


def _redis_cut(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    network, redis = fleet.world.network, _redis(fleet, fault).host
    if not network.connections(slot.host, redis):
        return None
    network.cut(slot.host, redis)
    fleet.disturb(slot, 0.0)
    return _at_once()


def _partition(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    network, redis = fleet.world.network, _redis(fleet, fault).host
    network.partition(slot.host, redis)
    fleet.disturb(slot, fault.seconds)
    return _later(partial(network.heal, slot.host, redis))


def _redis_restart(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    redis = _redis(fleet, fault)
    if not redis.up:
        return None
    redis.kill()
    return _later(redis.start)


def _redis_failover(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Lose Redis's last writes. It is not in the middle of a script: a replica takes over later."""
    redis = _redis(fleet, fault)
    if not redis.up or len(fleet.redis.hosts) > 1:
        return None

    async def fail_over() -> None:
        if redis.up:
            redis.fail_over(min(fault.seconds, MAX_REPLICA_LAG_S))
            fleet.on_failover()
            for each in fleet.slots:
                fleet.disturb(each, 0.0)

    return fail_over


def _redis_slow(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    network, redis = fleet.world.network, _redis(fleet, fault).host
    for pair in ((slot.host, redis), (redis, slot.host)):
        network.set_latency(*pair, 0.0, SLOW_REDIS_S)

    async def repair() -> None:
        for pair in ((slot.host, redis), (redis, slot.host)):
            network.set_latency(*pair, *LATENCY_S)

    return repair


def _redis_late(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Lose the worker's end of its connections, while what it has sent is still on the way.

    The worker sends it again on new connections; Redis then gets the first attempt last.
    """
    network, redis = fleet.world.network, _redis(fleet, fault).host
    if not network.connections(slot.host, redis):
        return None
    network.set_latency(slot.host, redis, *LATE_S)
    fleet.disturb(slot, fault.seconds)

    async def repair() -> None:
        network.set_latency(slot.host, redis, *LATENCY_S)
        for client, _ in network._between(slot.host, redis):
            pipe, client.outgoing = client.outgoing, None
            if pipe is not None:
                pipe.mark(Mark.END)
                client.fail(error_of(errno.ECONNRESET))

    return repair


def _redis_full(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    redis = _redis(fleet, fault)
    if not redis.up:
        return None
    redis.fill()
    return _later(redis.free)


def _redis_jump(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    host = _redis(fleet, fault).host
    host.skew_s = max(-MAX_JUMPS_S, min(host.skew_s + fault.seconds, MAX_JUMPS_S))
    fleet.breakers.forget()
    for each in fleet.slots:
        fleet.disturb(each, abs(fault.seconds))
    return _at_once()


def _scripts_flushed(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    flushed = _redis(fleet, fault).command("SCRIPT", "FLUSH")
    return _at_once() if flushed is not None else None


def _slot_moved(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Redirect what a slot lacks to another master, then move its keys, then the slot.

    Meanwhile a script whose keys are on both masters is rejected with TRYAGAIN.
    """
    move = fleet.redis.begin_move(fault.spec.replace("CONSUMER", slot.identities[0]))
    if move is None:
        return None
    disturbed = fleet.slots if fault.spec in (fleet.keys.sessions, fleet.keys.gate) else ()
    for each in disturbed:
        fleet.disturb(each, fault.seconds)
    pause_s = MOVE_PAUSES_S[int(fault.at_s * 1_000) % len(MOVE_PAUSES_S)]

    async def finish() -> None:
        moved = False
        while not moved:
            with suppress(CommandError):  # the target is full
                moved = move.step()
            for each in disturbed:
                fleet.disturb(each, REDIRECTED_S)
            await anyio.sleep(pause_s)

    return finish


def _group_destroyed(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    if not fleet.redis.command("XGROUP", "DESTROY", fleet.keys.sessions, GROUP):
        return None
    for each in fleet.slots:
        fleet.disturb(each, 0.0)
    return _at_once()


def _entry_deleted(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Delete the entries of a worker's sessions: it restores them, or others do if it dies.

    Entries that no worker has claimed cannot be restored.
    """
    entries = [session.ownership.fence.entry_id for session in slot.sessions]
    if not entries or not fleet.redis.command("XDEL", fleet.keys.sessions, *entries):
        return None
    return _at_once()


def _orphaned(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Delete the entries of a worker's sessions, and kill it before it can restore them."""
    if _entry_deleted(fleet, fault, slot) is None:
        return None
    return _crash(fleet, fault, slot)


def _provider_cut(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    provider, network = _provider(fleet, fault), fleet.world.network
    if not network.connections(slot.host, provider.host):
        return None
    network.cut(slot.host, provider.host)
    return _at_once()


def _provider_cut_at_byte(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    provider, network = _provider(fleet, fault), fleet.world.network
    if not network.connections(slot.host, provider.host):
        return None
    size = 1 + int(fault.at_s * 1_000) % CUT_WITHIN_BYTES
    network.cut(provider.host, slot.host, after_bytes=size)
    return _at_once()


def _provider_stall(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    provider, network = _provider(fleet, fault), fleet.world.network
    if not network.connections(slot.host, provider.host):
        return None
    network.stall(provider.host, slot.host)
    if fault.target % 2:
        network.stall(slot.host, provider.host)

    async def repair() -> None:
        """End every stall between both hosts: one that began earlier may hold messages longer."""
        held_s = network.stalled_s(provider.host, slot.host)
        link = network.link(provider.host, slot.host)
        slow_s = link.low_s + link.spread_s
        if held_s + slow_s + fleet.plan.latency_ms / 1_000 > MAX_LATE_S:
            network.cut(provider.host, slot.host)
        network.heal(provider.host, slot.host)

    return repair


def _provider_away(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    provider, network = _provider(fleet, fault), fleet.world.network
    network.refuse(provider.host, PORT)
    for each in fleet.slots:
        network.cut(each.host, provider.host)
    return _later(partial(network.accept, provider.host, PORT))


def _provider_slow(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    """Make the provider's messages later: together with its latency at most `MAX_LATE_S`.

    All of a socket are late by about the same time, so sockets are lost when that changes. Pure
    calls have single late messages and stalls: without word times a worker does not find each
    turn's end among them (guarantees, "How exact the end of a turn is").
    """
    provider, network = _provider(fleet, fault), fleet.world.network
    most_s = max(0.1, MAX_LATE_S - fleet.plan.latency_ms / 1_000) * 0.8
    network.set_latency(provider.host, slot.host, most_s * 0.9, most_s)
    network.cut(provider.host, slot.host)

    async def repair() -> None:
        network.set_latency(provider.host, slot.host, *LATENCY_S)
        network.cut(provider.host, slot.host)

    return repair


def _provider_fault(fleet: Fleet, fault: Fault, slot: Slot) -> Repair | None:
    server = _provider(fleet, fault).server
    if server is None:
        return None
    server.faults.set(fault.spec, seed=int(fault.at_s * 1_000))
    return _at_once()


def _redis(fleet: Fleet, fault: Fault) -> RedisHost:
    """Return the server that a fault hits: the one that runs a script now, or any."""
    hosts = fleet.redis.hosts
    return fleet.redis.running or hosts[(fault.target + int(fault.at_s * 1_000)) % len(hosts)]


def _provider(fleet: Fleet, fault: Fault) -> ProviderHost:
    """Return the provider that a fault hits: mostly the preferred one."""
    return fleet.providers[-1 if fault.target > 2 else 0]


BEGIN: Final[Mapping[FaultKind, Begin]] = {
    "crash": _crash,
    "vanish": _vanish,
    "pause": _pause,
    "stop": _stop,
    "stop-twice": partial(_stop, twice=True),
    "skew": _skew,
    "redis-cut": _redis_cut,
    "partition": _partition,
    "lost-reply": _redis_cut,  # it strikes when the script has run, and the reply is not sent
    "redis-restart": _redis_restart,
    "redis-failover": _redis_failover,
    "redis-full": _redis_full,
    "redis-slow": _redis_slow,
    "redis-late": _redis_late,
    "redis-jump": _redis_jump,
    "scripts-flushed": _scripts_flushed,
    "group-destroyed": _group_destroyed,
    "entry-deleted": _entry_deleted,
    "orphaned": _orphaned,
    "slot-moved": _slot_moved,
    "provider-cut": _provider_cut,
    "provider-cut-at-byte": _provider_cut_at_byte,
    "provider-stall": _provider_stall,
    "provider-away": _provider_away,
    "provider-slow": _provider_slow,
    "provider-fault": _provider_fault,
}

OF_A_WORKER: Final = frozenset(
    {
        *("crash", "vanish", "pause", "stop", "stop-twice", "skew", "redis-cut", "partition"),
        *("lost-reply", "entry-deleted", "orphaned", "provider-cut", "provider-cut-at-byte"),
        *("provider-stall", "provider-slow", "redis-slow", "redis-late"),
    }
)
"""Kinds that meet only the sessions of one worker."""
