"""Faults of the provider and its connections. Each returns whether it found a target."""

import time
from random import Random
from typing import Final

import anyio

from tests.chaos.target import FaultTarget

_NO_SERVICE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
    b"Connection: close\r\n\r\ndown"
)


async def cut(target: FaultTarget, rng: Random) -> bool:
    """Reset STT sockets."""
    links = target.harness.stt_proxy.some(rng, rng.choice((0.1, 0.5, 1.0)))
    if not links:
        return False
    target.note(f"cut {len(links)} STT sockets")
    for link in links:
        link.cut()
    return True


async def cut_at_byte(target: FaultTarget, rng: Random) -> bool:
    """Reset STT sockets inside a message."""
    links = target.harness.stt_proxy.some(rng, 0.5)
    if not links:
        return False
    target.note(f"cut {len(links)} STT sockets at some byte")
    for link in links:
        link.cut_after(rng.randint(0, 2_000))
    return True


async def stall(target: FaultTarget, rng: Random) -> bool:
    """Leave sockets half open until they are cut, or until the worker closes them.

    A worker does not tolerate a delay of more than one second, so a longer stall ends in a cut.
    """
    most_s = max(0.1, 0.9 - target.latency_ms / 1_000)
    seconds = rng.choice((most_s / 2, most_s, 2.0, 4.0, 12.0))
    links = target.harness.stt_proxy.some(rng, 0.5)
    if not links:
        return False
    target.note(f"stall {len(links)} STT sockets for {seconds:.1f} s")
    await target.stall(set(links), seconds, flows=seconds <= most_s)
    return True


async def outage(
    target: FaultTarget, rng: Random, answer: bytes | None = None, seconds: float = 0.0
) -> bool:
    """Reset all STT sockets, and refuse new ones for a while, with a reset or an HTTP response."""
    proxy = target.harness.stt_proxy
    seconds = seconds or rng.uniform(0.5, 5.0)
    async with target.lock("stt"):
        began_ms = time.time_ns() // 1_000_000
        target.note(f"STT outage of {seconds:.1f} s{', 503' if answer else ''}")
        with proxy.refusing(answer):
            proxy.cut_all()
            await anyio.sleep(seconds)
        target.stt_outages_ms.append((began_ms, time.time_ns() // 1_000_000))
    return True


async def long_outage(target: FaultTarget, rng: Random) -> bool:
    """Cause a provider outage longer than the maximum lag of audio."""
    return await outage(target, rng, seconds=target.max_lag_s + rng.uniform(0.5, 2.5))


async def answer_503(target: FaultTarget, rng: Random) -> bool:
    """Make the provider answer 503 for a while."""
    return await outage(target, rng, _NO_SERVICE)
