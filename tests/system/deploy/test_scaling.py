"""The fleet scales up, through a rolling restart, and down, and loses no word."""

import random
import re
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import Keys
from tests.support.acl import GuardedRedis, as_user
from tests.support.harness import check_order, words
from tests.system.deploy.calls import Calls, Owners
from tests.system.deploy.charts import Sample, draw_scaling
from tests.system.deploy.manifests import DEPLOY
from tests.system.deploy.replicas import Autoscaler, Replicas
from worker.bus.client.connection import connect
from worker.local.harness import allow_open_files, child_environment
from worker.local.process import ChildProcess

POLL_S = 0.5


class Plan(NamedTuple):
    """Parameters of a run; durations in seconds."""

    calls: int
    per_worker: int
    up: float
    down: float
    hold: float
    window: float
    """Autoscaler window: how long it must want fewer replicas before it removes one."""
    period: float
    """Interval of the autoscaler between two removals."""
    seed: int = 1
    least: int = 2

    @property
    def target(self) -> int:
        """Sessions per worker that leave the headroom of the manifests."""
        return self.per_worker * 7 // 10

    @property
    def most(self) -> int:
        """Maximum number of workers the demand can ask for."""
        return -(-self.calls // self.target)


class Outcome(NamedTuple):
    """Result of a run."""

    samples: list[Sample]
    rolled_s: tuple[float, float]
    calls: Calls
    moves: list[tuple[str, str]]
    asked_to_stop: set[str]


class _Run:
    def __init__(self, plan: Plan, clients: Mapping[str, Redis], replicas: Replicas) -> None:
        self._plan = plan
        self._scaler = clients["scaler"]
        self._replicas = replicas
        self._owners = Owners(clients["admin"])
        self._samples: list[Sample] = []
        self._rng = random.Random(plan.seed)
        self.calls = Calls(clients["producer"], clients["consumer"])

    async def run(self) -> Outcome:
        plan, replicas = self._plan, self._replicas
        replicas.desired = plan.least
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(replicas.run)
            await self._until(lambda: replicas.settled)
            for loop in (self._scale, self.calls.speak, self.calls.listen):
                tasks.start_soon(loop)
            began = anyio.current_time()
            for _ in range(plan.calls):
                await self.calls.begin()
                await anyio.sleep(self._rng.uniform(0, 2 * plan.up / plan.calls))
            await self._until(lambda: replicas.desired == plan.most and replicas.settled)
            await anyio.sleep(plan.hold)
            rolled_from = anyio.current_time() - began
            replicas.generation += 1
            await self._until(lambda: replicas.settled)
            rolled_to = anyio.current_time() - began
            await anyio.sleep(plan.hold)
            for call in self._rng.sample(self.calls.calls, plan.calls):
                call.hanging_up = True
                await anyio.sleep(self._rng.uniform(0, 2 * plan.down / plan.calls))
            await self._until(lambda: self.calls.live == 0)
            await self._until(lambda: self._samples[-1][1:] == (0, plan.least) and replicas.settled)
            tasks.cancel_scope.cancel()
        return Outcome(
            self._samples,
            (rolled_from, rolled_to),
            self.calls,
            self._owners.moves,
            replicas.asked_to_stop,
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(120):
            while not condition():
                await anyio.sleep(0.05)

    async def _scale(self) -> None:
        """Act as KEDA: read one number and set one."""
        plan, replicas = self._plan, self._replicas
        scaler = Autoscaler(
            plan.target, plan.least, plan.most, window_s=plan.window, period_s=plan.period
        )
        began = anyio.current_time()
        while True:
            demand = await self._scaler.xlen(Keys().sessions)
            now = anyio.current_time() - began
            self._samples.append(Sample(now, demand, len(replicas.replicas)))
            replicas.desired = scaler.decide(demand, replicas.desired, now)
            await self._owners.look()
            await anyio.sleep(POLL_S)


async def _run(plan: Plan, logs: Path) -> Outcome:
    allow_open_files(2 * plan.calls + 200)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(GuardedRedis.start())
        clients = {
            user: await stack.enter_async_context(connect(as_user(server.url, user)))
            for user in ("admin", "producer", "consumer", "scaler")
        }
        command = ["stt-server", "--engine", "script", "--port", "0", "--latency-ms", "150"]
        stt = await stack.enter_async_context(
            ChildProcess.start(
                "stt-server", command, child_environment({}), logs / "stt-server.log"
            )
        )
        with anyio.fail_after(60):
            while not (url := re.search(r"ws://\S+", stt.text())):
                await anyio.sleep(0.05)
        settings = {
            "REDIS_URL": as_user(server.url, "worker"),
            "STT_URL": url[0],
            "MAX_SESSIONS": str(plan.per_worker),
            "DRAIN_S": "5",
            "LEASE_MS": "60000",  # a worker that stalls for a moment keeps its sessions
            "ADMIN_ADDR": "",
        }
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        replicas = Replicas(
            clients["admin"],
            child_environment(settings),
            logs,
            tasks,
            stack,
            random.Random(plan.seed),
        )
        return await _Run(plan, clients, replicas).run()


def _check(plan: Plan, outcome: Outcome) -> None:
    calls = outcome.calls.calls
    assert len(calls) == plan.calls
    for call in calls:
        events = outcome.calls.events[call.session]
        check_order(events)
        assert words(events) == list(range(call.words))
    assert max(each.demand for each in outcome.samples) == plan.calls
    assert outcome.samples[-1].demand == 0
    assert outcome.samples[-1].workers == plan.least
    assert outcome.moves, "those of the rolling restart"
    kept = [move for move in outcome.moves if move[0] not in outcome.asked_to_stop]
    assert not kept, "a session leaves a worker only when it is asked to stop"


async def test_small_fleet_scales_without_loss(tmp_path: Path) -> None:
    plan = Plan(calls=12, per_worker=6, up=1.5, down=1, hold=0.2, window=1, period=0.3)
    _check(plan, await _run(plan, tmp_path))


@pytest.mark.slow
async def test_300_calls_scale_without_loss(tmp_path: Path) -> None:
    plan = Plan(calls=300, per_worker=80, up=60, down=60, hold=20, window=15, period=5)
    outcome = await _run(plan, tmp_path)
    _check(plan, outcome)
    spoken = sum(call.words for call in outcome.calls.calls)
    title = (
        f"{plan.calls} calls, {plan.target} per worker wanted, {plan.per_worker} at most: "
        f"{spoken:,} words, none lost; {len(outcome.moves)} moves"
    )
    picture = draw_scaling(title, outcome.samples, outcome.rolled_s)
    await anyio.Path(DEPLOY / "scaling.svg").write_text(picture, "utf-8")


def test_autoscaler_decisions() -> None:
    scaler = Autoscaler(10, 1, 5, window_s=10, period_s=5)
    assert scaler.decide(0, 1, 0) == 1
    assert scaler.decide(11, 1, 1) == 2, "up at once"
    assert scaler.decide(200, 2, 2) == 5, "not beyond the most"
    assert scaler.decide(0, 5, 3) == 5, "down later"
    assert scaler.decide(0, 5, 13) == 4, "one"
    assert scaler.decide(0, 4, 14) == 4, "at a time"
    assert scaler.decide(0, 4, 18) == 3
