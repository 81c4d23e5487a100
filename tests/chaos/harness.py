"""Environment of a chaos run: Redis on disk, the provider, a proxy to each, and the fleet."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis

from schemas import Keys
from tests.chaos.fleet import DRAIN_S, Fleet, Slot
from tests.chaos.plan import Plan
from tests.chaos.proxy import Proxy
from worker.bus.client.connection import RedisHealth, connect
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis
from worker.settings import API_KEY_VARIABLE, ENV_PREFIX


@dataclass(frozen=True)
class ChaosHarness:
    """All parts of the run, which faults may target."""

    server: EmbeddedRedis
    redis: Redis
    """Direct client, for the run itself."""
    health: RedisHealth
    keys: Keys
    stt: TurnsServer
    stt_proxy: Proxy
    fleet: Fleet


@asynccontextmanager
async def open_harness(plan: Plan, logs: Path, module: str) -> AsyncIterator[ChaosHarness]:
    """Start everything including workers; clean up at the end, except for the logs.

    Raises LocalPartMissing or BusUnavailable as `EmbeddedRedis` does.
    """
    disk = {"appendfsync": "always"}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedRedis.start(append_only=True, config=disk))
        redis = await stack.enter_async_context(connect(server.url))
        options = ScriptOptions(
            latency_ms=plan.latency_ms,
            rewording=plan.seed if plan.rewording else None,
            text_style=plan.text_style_name,
        )
        settings = ServerSettings(port=0, max_connections=plan.connections or None)
        stt = await stack.enter_async_context(TurnsServer.serve(settings, ScriptEngine(options)))
        stt_proxy = await stack.enter_async_context(Proxy.open(lambda: stt.port))
        ways = [
            await stack.enter_async_context(Proxy.open(lambda: server.port))
            for _ in range(plan.workers)
        ]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        fleet = _fleet(
            plan, logs, tasks, module, ways, stt.url.replace(str(stt.port), str(stt_proxy.port))
        )
        for slot in fleet.slots:
            await fleet.start(slot)
        yield ChaosHarness(server, redis, RedisHealth(), Keys(), stt, stt_proxy, fleet)


def _fleet(
    plan: Plan, logs: Path, tasks: TaskGroup, module: str, ways: list[Proxy], stt_url: str
) -> Fleet:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENV_PREFIX, "OTEL_"))
    }
    settings = {
        "STT_URL": stt_url,
        "STT_MAX_CONNECTIONS": str(plan.connections),
        "LEASE_MS": str(plan.lease_ms),
        "DRAIN_S": str(DRAIN_S),
        "MAX_LAG_S": str(plan.max_lag_s),
        "ADMIN_ADDR": "",
    }
    common = {**kept, API_KEY_VARIABLE: "local"}
    common |= {ENV_PREFIX + name: value for name, value in settings.items()}
    slots = [
        Slot(
            f"worker-{number}",
            way,
            {**common, ENV_PREFIX + "REDIS_URL": f"redis://127.0.0.1:{way.port}/0"},
        )
        for number, way in enumerate(ways, 1)
    ]
    return Fleet(slots, logs, tasks, module)
