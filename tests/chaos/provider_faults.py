"""Faults of the provider and its connections. Each returns whether it found a target."""

from random import Random
from typing import Final

import anyio

from tests.chaos.harness import ChaosHarness, now_ms, stall_links

_NO_SERVICE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
    b"Connection: close\r\n\r\ndown"
)


async def cut(harness: ChaosHarness, rng: Random) -> bool:
    """Reset STT sockets."""
    links = harness.stt_proxy.some(rng, rng.choice((0.1, 0.5, 1.0)))
    if not links:
        return False
    harness.note(f"cut {len(links)} STT sockets")
    for link in links:
        link.cut()
    return True


async def cut_at_byte(harness: ChaosHarness, rng: Random) -> bool:
    """Reset STT sockets inside a message."""
    links = harness.stt_proxy.some(rng, 0.5)
    if not links:
        return False
    harness.note(f"cut {len(links)} STT sockets at some byte")
    for link in links:
        link.cut_after(rng.randint(0, 2_000))
    return True


async def stall(harness: ChaosHarness, rng: Random) -> bool:
    """Leave sockets half open until they are cut, or until the worker closes them.

    A worker does not tolerate a delay of more than one second, so a longer stall ends in a cut.
    """
    most_s = max(0.1, 0.9 - harness.plan.latency_ms / 1_000)
    seconds = rng.choice((most_s / 2, most_s, 2.0, 4.0, 12.0))
    links = harness.stt_proxy.some(rng, 0.5)
    if not links:
        return False
    harness.note(f"stall {len(links)} STT sockets for {seconds:.1f} s")
    await stall_links(set(links), seconds, flows=seconds <= most_s)
    return True


async def outage(
    harness: ChaosHarness, rng: Random, answer: bytes | None = None, seconds: float = 0.0
) -> bool:
    """Reset all STT sockets, and refuse new ones for a while, with a reset or an HTTP response."""
    proxy = harness.stt_proxy
    seconds = seconds or rng.uniform(0.5, 5.0)
    async with harness.lock("stt"):
        began_ms = now_ms()
        harness.note(f"STT outage of {seconds:.1f} s{', 503' if answer else ''}")
        with proxy.refusing(answer):
            proxy.cut_all()
            await anyio.sleep(seconds)
        harness.stt_outages_ms.append((began_ms, now_ms()))
    return True


async def long_outage(harness: ChaosHarness, rng: Random) -> bool:
    """Cause a provider outage longer than the maximum lag of audio."""
    return await outage(harness, rng, seconds=harness.plan.max_lag_s + rng.uniform(0.5, 2.5))


async def answer_503(harness: ChaosHarness, rng: Random) -> bool:
    """Make the provider answer 503 for a while."""
    return await outage(harness, rng, _NO_SERVICE)
