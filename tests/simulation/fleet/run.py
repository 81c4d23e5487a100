"""Runs a plan: from the first session to the report. Two runs of one plan are the same."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

import anyio

from schemas.turns import Event
from tests.chaos.leftovers import leftovers
from tests.simulation.fleet.checkers import Published, session_findings
from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.faults import LATE_S
from tests.simulation.fleet.fleet import Fleet
from tests.simulation.fleet.history import Finding, ScriptRun
from tests.simulation.fleet.injector import FaultInjector
from tests.simulation.fleet.internal_errors import injected
from tests.simulation.fleet.plan import FleetPlan, FleetSession
from tests.simulation.fleet.producers import BadProducer, FleetProducer, late_session
from tests.simulation.fleet.readout import (
    dead_letters,
    events_by_session,
    events_of,
    is_string,
)
from tests.simulation.fleet.rejections import (
    AppendedAudio,
    dead_letter_findings,
    rejected_session_findings,
)
from tests.simulation.fleet.report import Outcome
from tests.simulation.fleet.shards import with_shards
from tests.simulation.virtual.scheduler import Deadlock, TimeLimit
from tests.simulation.virtual.world import World
from worker.bus.cleanup import AUDIO_INTERVAL_S
from worker.bus.client.connection import connect
from worker.core import breaker, provider_errors
from worker.stt import websocket
from worker.stt.frames import FrameWriter

START_S: Final = 1.0
"""Time from the start of the workers to the first session."""

END_TIMEOUT_S: Final = 240.0
"""Maximum time from the last append and the last repair until every session has ended."""

SEARCH_TIMEOUT_S: Final = AUDIO_INTERVAL_S + 60.0
"""The same if an entry and the group were deleted: then only the search of each hour finds a
session whose owner died (guarantees, "Failures")."""

SETTLE_TIMEOUT_S: Final = 60.0
"""Maximum time until nothing is left of ended sessions and of killed workers."""

DELIVERY_TIMEOUT_S: Final = 2 * LATE_S[1]
"""Maximum time until Redis has received what lost connections have sent: a segment may arrive in
two parts, each that late."""

BREAKER_TIMEOUT_S: Final = 120.0
"""Maximum time until a breaker closes while sessions want its provider, which works."""

LATE_INTERVAL_S: Final = 3.0
"""Interval between these sessions."""

POLL_S: Final = 0.5
LANES: Final = ("0", "1")


def run_seed(seed: int) -> Outcome:
    """Run the plan of a seed."""
    return run(with_shards(draw_plan(seed)))


def run(plan: FleetPlan) -> Outcome:
    """Run a plan."""
    with _isolated(plan.seed), injected(plan):
        world = World(f"{plan.seed} world")
        return _Run(plan, world).run()


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Keep from the run what differs between two runs in one process, or between machines."""
    proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
    environment = {name: value for name, value in os.environ.items() if name not in proxies}
    for module in (breaker, provider_errors):
        module._RNG.seed(seed)  # generators that are made at the import
    logging.disable(logging.CRITICAL)
    try:
        with (
            patch.dict(os.environ, environment, clear=True),
            patch.object(websocket, "_audio", FrameWriter()),  # it keeps random bytes
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Run:
    def __init__(self, plan: FleetPlan, world: World) -> None:
        self._plan = plan
        self._world = world
        self._fleet = fleet = Fleet(plan, world)
        self._injector = FaultInjector(fleet)
        self._producers = [
            FleetProducer(session, fleet.keys, fleet.redis.append) for session in plan.sessions
        ]
        self._bad_producers = [
            BadProducer(entry, plan, fleet.keys, fleet.redis.append) for entry in plan.bad_entries
        ]
        self._findings = list[Finding]()

    def run(self) -> Outcome:
        fleet, world, plan = self._fleet, self._world, self._plan
        fleet.on_script = self._on_script
        fleet.on_failover = self._on_failover
        limit_s = 2 * plan.seconds + END_TIMEOUT_S + SEARCH_TIMEOUT_S + SETTLE_TIMEOUT_S
        try:
            world.run(self._program, limit_s=limit_s)
        except (Deadlock, TimeLimit) as error:
            self._findings.append(Finding("stuck", "", str(error)))
        events = events_by_session(fleet.redis.read, fleet.keys, *LANES)
        for producer in self._producers:
            session = producer.session
            published = Published(events.get(session.script.name, ()), self._own_events(session))
            self._findings += session_findings(plan, session, producer.sent, published)
        self._check_rejections(events)
        self._findings += fleet.findings + fleet.history.findings + fleet.breakers.findings
        self._findings += [Finding("error", "", error) for error in world.errors]
        return Outcome(
            plan=plan,
            findings=tuple(self._findings),
            digest=world.log.digest,
            seconds=world.now(),
            faults=dict(sorted(self._injector.applied.items())),
            states={kind: dict(states) for kind, states in sorted(self._injector.states.items())},
            events=sum(map(len, events.values())),
            commits=fleet.history.commits,
            claims=fleet.history.claims,
            sockets=sum(provider.sockets for provider in fleet.providers),
            history=tuple(fleet.history.runs),
        )

    def _on_failover(self) -> None:
        self._fleet.history.rolled_back()
        self._fleet.breakers.forget()
        for producer in self._producers:
            producer.check_memory(self._fleet.redis.last_id)

    def _on_script(self, run: ScriptRun) -> None:
        self._fleet.history.add(run)
        self._injector.on_script(run)

    # -- on the control host

    async def _program(self) -> None:
        fleet = self._fleet
        fleet.start()
        await anyio.sleep(START_S)
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._watch_permits)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._injector.run)
                for producer in self._producers:
                    tasks.start_soon(self._produce, producer)
                for bad in self._bad_producers:
                    tasks.start_soon(self._produce_bad, bad)
            watching.cancel_scope.cancel()
        applied = self._injector.applied
        hidden = applied["group-destroyed"] and (applied["orphaned"] or applied["entry-deleted"])
        timeout_s = SEARCH_TIMEOUT_S if hidden else END_TIMEOUT_S
        await self._wait_for_ends(timeout_s)
        if fleet.open_breakers():
            await self._close_breakers()
            await self._wait_for_ends(timeout_s)
        await self._stop()

    async def _wait_for_ends(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            while not all(map(self._has_ended, self._producers)):
                await anyio.sleep(POLL_S)

    async def _close_breakers(self) -> None:
        """Let sessions try the providers whose breakers are open: they work again."""
        fleet = self._fleet
        for provider in fleet.providers:
            if provider.server is not None:
                provider.server.faults.clear()
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(BREAKER_TIMEOUT_S):
                while names := fleet.open_breakers():
                    for name in names:
                        session = late_session(len(self._producers), name)
                        producer = FleetProducer(session, fleet.keys, fleet.redis.append)
                        self._producers.append(producer)
                        tasks.start_soon(producer.run)
                    await anyio.sleep(LATE_INTERVAL_S)
        for name in fleet.open_breakers():
            self._findings.append(Finding("breaker", "", f"{name} works, and its breaker is open"))

    async def _watch_permits(self) -> None:
        while self._plan.connections and not self._fleet.findings:
            self._fleet.check_permits()
            await anyio.sleep(POLL_S / 2)

    async def _produce(self, producer: FleetProducer) -> None:
        await anyio.sleep(producer.session.at_s)
        with anyio.move_on_after(self._plan.seconds + END_TIMEOUT_S):
            await producer.run()

    async def _produce_bad(self, producer: BadProducer) -> None:
        await anyio.sleep(producer.entry.at_s)
        with anyio.move_on_after(self._plan.seconds + END_TIMEOUT_S):
            await producer.run(lambda key: bool(self._fleet.redis.command("EXISTS", key)))

    def _has_ended(self, producer: FleetProducer) -> bool:
        script = producer.session.script
        state = self._fleet.keys.state(script.lane, script.name)
        status = self._fleet.redis.command("HGET", state, "status")
        return status == b"ended" or producer.sent.forgotten

    def _has_settled(self) -> bool:
        """Whether the dead workers' records are gone, and the ended sessions' entries and permits.

        Another worker completes what a killed one has begun, after a lease at most. A permit that
        a fault leaves behind expires; without faults nothing is left behind.
        """
        if not self._fleet.redis.serving:
            return False
        command, keys = self._fleet.redis.command, self._fleet.keys
        permits = command("ZCARD", keys.gate) if self._injector.applied else 0
        left = (command("XLEN", keys.sessions), permits)
        return left == (0, 0) and self._fleet.has_own_records()

    async def _stop(self) -> None:
        """Stop every worker, and check what stays in Redis and in the processes."""
        fleet = self._fleet
        for slot in fleet.slots:
            slot.start()
        await anyio.sleep(DELIVERY_TIMEOUT_S)  # a request on its way may take a permit
        with anyio.move_on_after(SETTLE_TIMEOUT_S):
            while not self._has_settled():
                await anyio.sleep(POLL_S)
        await anyio.sleep(POLL_S)
        for slot in fleet.slots:
            slot.stop()
        with anyio.move_on_after(self._plan.drain_s + 10.0):
            for slot in fleet.slots:
                if slot.process is not None:
                    await slot.process.wait()
        for slot in fleet.slots:
            self._check_process(slot.name, slot.process)
        redis = connect(fleet.redis.url)
        try:
            # A session whose `end` Redis forgot is live until its idle timeout.
            kept = [each.session.script for each in self._producers if not each.sent.forgotten]
            complete = len(kept) == len(self._producers)
            for violation in await leftovers(redis, fleet.keys, kept):
                if violation.detail.startswith("refused: "):
                    continue  # `dead_letter_findings` checks them
                if complete or violation.detail.startswith(f"{fleet.keys.prefix}:{{"):
                    self._findings.append(Finding("leak", violation.session, violation.detail))
        finally:
            await redis.aclose()

    def _check_process(self, name: str, process: Any) -> None:
        if process is None or not process.done:
            self._findings.append(Finding("drain", "", f"{name} did not stop"))
        elif process.exception is not None:
            self._findings.append(Finding("crash", "", f"{name}: {process.exception!r}"))
        elif process.leaked_tasks or process.leaked_sockets:
            left = [*process.leaked_tasks, *process.leaked_sockets]
            self._findings.append(Finding("leak", "", f"{name} left {', '.join(left)}"))

    # -- after the run

    def _check_rejections(self, events: Mapping[str, Sequence[Event]]) -> None:
        """Check what became of bad entries, unless Redis lost the end of its history."""
        fleet, read = self._fleet, self._fleet.redis.read
        if fleet.history.rollbacks:
            return
        rejected = [each.rejected for each in self._bad_producers]
        appended = [each for each in rejected if each is not None]
        if len(appended) < len(rejected):
            self._findings.append(Finding("stuck", "", "a bad entry could not be appended"))
        sessions = [AppendedAudio(each.session, each.sent.bad_ids) for each in self._producers]
        faults = bool(self._injector.applied)
        self._findings += dead_letter_findings(
            dead_letters(read, fleet.keys), appended, sessions, fleet.keys, faults=faults
        )
        for producer in self._bad_producers:
            if producer.rejected is not None:
                self._findings += rejected_session_findings(
                    producer.rejected,
                    events.get(producer.rejected.session, ()),
                    tombstone=is_string(read, producer.audio_key),
                )

    def _own_events(self, session: FleetSession) -> list[Event] | None:
        script, fleet = session.script, self._fleet
        if script.out != "session":
            return None
        own = fleet.keys.session_turns(script.lane, script.name)
        return events_of(fleet.redis.read, own)
