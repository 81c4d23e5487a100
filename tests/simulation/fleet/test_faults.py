"""Every kind of fault of a plan can be injected, and stalls deliver no message too late."""

import asyncio

import anyio
import pytest

from tests.simulation.fleet.faults import BEGIN, OF_A_WORKER
from tests.simulation.fleet.fleet import Fleet
from tests.simulation.fleet.plan import FAULTS, MAX_LATE_S, PROVIDER_FAULTS, Fault, FleetPlan
from tests.simulation.virtual.world import World
from worker.local.emulator.faults import parse_fault

LATENCY_MS = 300.0
SHORT_S = MAX_LATE_S - LATENCY_MS / 1_000 - 0.1
LONG_S = MAX_LATE_S


def test_each_kind_has_an_action() -> None:
    assert set(BEGIN) == set(FAULTS)
    assert set(BEGIN) > OF_A_WORKER


@pytest.mark.parametrize("spec", PROVIDER_FAULTS)
def test_faults_of_the_provider_are_valid(spec: str) -> None:
    assert parse_fault(spec).count is not None


@pytest.mark.parametrize(
    ("stalls", "slow_s", "delivers"),
    [
        ([(0.0, SHORT_S)], 0.0, True),
        ([(0.0, SHORT_S)], 0.2, False),
        ([(0.0, LONG_S)], 0.0, False),
        ([(0.0, 10.0), (LONG_S, 0.1)], 0.0, False),  # the end of the short one ends the long one
        ([(0.0, SHORT_S), (SHORT_S / 2, SHORT_S)], 0.0, True),
    ],
)
@pytest.mark.parametrize("target", [0, 1])
def test_stall_of_the_provider_delivers_no_late_message(
    target: int, stalls: list[tuple[float, float]], slow_s: float, delivers: bool
) -> None:
    world = World("stalls")
    fleet = Fleet(FleetPlan(seed=1, workers=2, latency_ms=LATENCY_MS, sessions=()), world)
    provider, slot = fleet.providers[0].host, fleet.slots[target]
    world.network.set_latency(provider, slot.host, slow_s, slow_s)
    received: list[bytes] = []

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await anyio.sleep(1)  # the stalls begin
        writer.write(b"message")

    async def serve() -> None:
        await (await asyncio.start_server(send, None, 80)).serve_forever()

    async def receive() -> None:
        reader, _ = await asyncio.open_connection(provider.address, 80)
        try:
            received.append(await reader.read(100))
        except ConnectionResetError:
            received.append(b"")
        await anyio.sleep_forever()

    async def stall(at_s: float, seconds: float) -> None:
        await anyio.sleep(at_s)
        fault = Fault(kind="provider-stall", at_s=at_s, seconds=seconds, target=target)
        repair = BEGIN[fault.kind](fleet, fault, slot)
        assert repair is not None
        await anyio.sleep(seconds)
        await repair()

    async def program() -> None:
        provider.start(serve)
        await anyio.sleep(1)
        slot.host.start(receive)
        await anyio.sleep(0.9)
        async with anyio.create_task_group() as tasks:
            for each in stalls:
                tasks.start_soon(stall, *each)
        await anyio.sleep(1)

    world.run(program, limit_s=60)
    assert world.errors == []
    assert received == [b"message" if delivers else b""]
