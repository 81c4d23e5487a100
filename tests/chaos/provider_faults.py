"""Faults of one provider and its connections. Each returns whether it found a target."""

from contextlib import AbstractContextManager
from random import Random
from typing import Final

import anyio

from tests.chaos.harness import ChaosHarness, now_ms, stall_links
from tests.chaos.worker_faults import kill
from worker.bench.proxy import Link
from worker.stt.routes import PROVIDERS

_NO_SERVICE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
    b"Connection: close\r\n\r\ndown"
)

_FIND_WORKER_S: Final = 3.0
"""Maximum time to find a worker with sessions."""

_POLL_S: Final = 0.1


async def cut(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Reset STT sockets."""
    links = _some_links(harness, rng, provider, rng.choice((0.1, 0.5, 1.0)))
    if links:
        harness.note(f"{provider}: cut {len(links)} sockets")
    for link in links:
        link.cut()
    return bool(links)


async def cut_at_byte(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Reset STT sockets inside a message."""
    links = _some_links(harness, rng, provider, 0.5)
    if links:
        harness.note(f"{provider}: cut {len(links)} sockets at some byte")
    for link in links:
        link.cut_after(rng.randint(0, 2_000))
    return bool(links)


async def stall(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Leave sockets half open until they are cut, or until the worker closes them.

    Without times of words, a worker does not tolerate a delay of more than one second, so a longer
    stall ends in a cut.
    """
    most_s = max(0.1, 0.9 - harness.plan.latency_ms / 1_000)
    seconds = rng.choice((most_s / 2, most_s, 2.0, 4.0, 12.0))
    links = _some_links(harness, rng, provider, 0.5)
    if not links:
        return False
    flows = seconds <= most_s or PROVIDERS[provider].word_times
    harness.note(f"{provider}: stall {len(links)} sockets for {seconds:.1f} s")
    await stall_links(set(links), seconds, flows=flows)
    return True


async def outage(
    harness: ChaosHarness, rng: Random, provider: str, answer: bytes | None = None
) -> bool:
    """Reset all sockets, and refuse new ones for a while, with a reset or an HTTP response."""
    refusing = harness.stt[provider].proxy.refusing(answer)
    what = "503" if answer else "resets connects"
    return await _away(harness, provider, what, rng.uniform(0.5, 5.0), refusing)


async def answer_503(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Make the provider answer 503 for a while."""
    return await outage(harness, rng, provider, _NO_SERVICE)


async def long_outage(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Cause an outage longer than the maximum lag of audio."""
    seconds = harness.plan.max_lag_s + rng.uniform(0.5, 2.5)
    refusing = harness.stt[provider].proxy.refusing()
    return await _away(harness, provider, "resets connects", seconds, refusing)


async def refuse(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Reset all sockets, and stop listening for a while: the kernel refuses connects."""
    closed = harness.stt[provider].proxy.closed()
    return await _away(harness, provider, "is down", rng.uniform(0.5, 8.0), closed)


async def half_open(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Leave all sockets half open, and accept new ones without an answer; reset them at the end."""
    proxy = harness.stt[provider].proxy
    seconds = rng.uniform(1.0, 12.0)
    async with harness.lock(provider):
        harness.note(f"{provider}: half open for {seconds:.1f} s")
        with proxy.stalling():
            await anyio.sleep(seconds)
        proxy.cut_all()
    return True


async def standstill(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Make the provider take audio and answer pings, and send no message inside a turn any more.

    A socket that the fault hits stays so until the worker replaces it.
    """
    return await _misbehave(harness, provider, rng.uniform(1.0, 8.0), "stall@mid-turn")


async def slow(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Reset all sockets, and delay the first message on new ones."""
    late_s = rng.choice((0.5, 1.5, 3.0, 6.0))
    fault = f"connected=late:{late_s:g}s"
    return await _misbehave(harness, provider, rng.uniform(2.0, 10.0), fault, cuts=True)


async def outage_and_kill(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Cause an outage, and kill a worker during it: its sessions may have just moved."""
    after_s, outage_rng = rng.uniform(0.0, 4.0), Random(rng.getrandbits(32))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outage, harness, outage_rng, provider)
        await anyio.sleep(after_s)
        until = anyio.current_time() + _FIND_WORKER_S
        while not await kill(harness, rng) and anyio.current_time() < until:
            await anyio.sleep(_POLL_S)
    return True


async def outage_of_all(harness: ChaosHarness, rng: Random, provider: str) -> bool:
    """Cause an outage of all providers: this one fails first, and the others meanwhile."""
    seconds, after_s = rng.uniform(1.0, 8.0), rng.uniform(0.0, 4.0)
    async with anyio.create_task_group() as tasks:
        for name in sorted(harness.stt, key=lambda name: name != provider):
            refusing = harness.stt[name].proxy.refusing(rng.choice((None, _NO_SERVICE)))
            tasks.start_soon(_away, harness, name, "refuses connects", seconds, refusing)
            if name == provider:
                await anyio.sleep(min(after_s, seconds / 2))
    return True


async def _away(
    harness: ChaosHarness,
    provider: str,
    what: str,
    seconds: float,
    outage: AbstractContextManager[None],
) -> bool:
    """Reset all sockets, and hold an outage for a while."""
    async with harness.lock(provider):
        began_ms = now_ms()
        harness.note(f"{provider}: {what} for {seconds:.1f} s")
        with outage:
            harness.stt[provider].proxy.cut_all()
            await anyio.sleep(seconds)
        harness.stt_outages_ms.append((began_ms, now_ms()))
    return True


async def _misbehave(
    harness: ChaosHarness, provider: str, seconds: float, fault: str, *, cuts: bool = False
) -> bool:
    """Set a fault of the local server for a while."""
    server, proxy = harness.stt[provider]
    async with harness.lock(provider):
        if not server.open_connections:
            return False
        harness.note(f"{provider}: {fault} for {seconds:.1f} s")
        server.faults.set(fault)
        if cuts:
            proxy.cut_all()
        try:
            await anyio.sleep(seconds)
        finally:
            server.faults.clear()
    return True


def _some_links(harness: ChaosHarness, rng: Random, provider: str, share: float) -> list[Link]:
    return harness.stt[provider].proxy.some(rng, share)
