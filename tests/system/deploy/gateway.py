"""A gateway without sockets: its calls on a real Redis, and the metrics that they change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from schemas import Encoding, Keys, SessionEntry
from tests.support.polling import PATIENCE_S, eventually
from worker.ingest.calls import Call, CallLimits, CallRefusedError, Calls
from worker.ingest.counters import IngestCounters
from worker.ingest.metrics import GatewayGauges
from worker.ingest.records import Audio, Ended, Started

SESSION = "of-a-gateway"
CHUNK = bytes(3_200)


class BusyGateway:
    """One call that goes on, and one that was refused."""

    def __init__(self, call: Call, counters: IngestCounters, gauges: GatewayGauges) -> None:
        self.gauges = gauges
        self._call = call
        self._counters = counters

    async def append(self) -> None:
        """Append a chunk."""
        appended = self._counters.entries
        self._call.feed(Audio(CHUNK))
        await eventually(lambda: self._counters.entries > appended, "the chunk to be appended")


@asynccontextmanager
async def busy_gateway(redis: Redis, keys: Keys) -> AsyncIterator[BusyGateway]:
    """Open a gateway that is full with one call; the call ends with the block."""
    counters = IngestCounters()
    async with Calls(redis, keys, CallLimits(max_calls=1), counters) as calls:
        call = calls.open(_started(SESSION))
        with suppress(CallRefusedError):
            calls.open(_started("another"))
        gauges = GatewayGauges(counters, calls, 1, lambda: False, lambda: 0.0)
        gateway = BusyGateway(call, counters, gauges)
        await gateway.append()
        yield gateway
        call.feed(Ended())
        await calls.drain(PATIENCE_S)


def _started(session: str) -> Started:
    entry = SessionEntry(session=session, encoding=Encoding.PCM_S16LE, sample_rate=16_000)
    return Started((entry,))
