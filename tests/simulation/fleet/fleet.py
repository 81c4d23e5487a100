"""The parts of a simulated fleet: Redis, the providers and the workers, each on its own host."""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from schemas.keys import RELEASED, Keys
from tests.simulation.fleet.breakers import BreakerHistory
from tests.simulation.fleet.history import Finding, History, ScriptRun
from tests.simulation.fleet.plan import FleetPlan
from tests.simulation.fleet.providers import ProviderHost, ProviderName
from tests.simulation.fleet.redis_hosts import RedisHosts
from tests.simulation.fleet.workers import Slot
from tests.simulation.redis.cluster_model import NOT_LOCAL
from tests.simulation.redis.resp import CommandError
from tests.simulation.virtual.world import World
from worker.core.phases import Phase
from worker.settings import Settings

HEARTBEAT_DELAY_S: Final = 3.0
"""Maximum time after a disturbance until a worker has renewed its leases."""

RETENTION_S: Final = 86_400
"""Retention of events and of ended sessions: longer than a run, which checks them at its end. A run
may last more than an hour, which is the default."""


class Fleet:
    """Everything on the simulated machines of one run."""

    def __init__(self, plan: FleetPlan, world: World) -> None:
        self.plan: Final = plan
        self.world: Final = world
        self.keys: Final = Keys()
        self.findings: Final[list[Finding]] = []
        """What is wrong with the fleet as a whole."""
        self.redis: Final = RedisHosts(world, plan.shards, random.Random(f"{plan.seed} redis"))
        self.history: Final = History(self.redis.commit_number)
        self.breakers: Final = BreakerHistory()
        names: tuple[ProviderName, ...] = ("cartesia", "flux")
        hosts = {name: ProviderHost(world.host(name), name, plan) for name in names}
        self.providers: Final = [
            host for name, host in sorted(hosts.items(), key=lambda pair: _rank(plan, pair[0]))
        ]
        """The preferred provider first."""
        self.slots: Final = [
            Slot(world.host(f"worker-{number}"), self._settings(f"worker-{number}", hosts))
            for number in range(1, plan.workers + 1)
        ]
        self.on_script: Callable[[ScriptRun], None] = self.history.add
        self.on_failover: Callable[[], None] = self.history.rolled_back
        self.redis.on_script = self._on_script

    def start(self) -> None:
        """Start every process."""
        self.redis.start()
        for provider in self.providers:
            provider.start()
        for slot in self.slots:
            slot.start()

    def disturb(self, slot: Slot, seconds: float) -> None:
        """Note that a worker may be unable to renew its leases for these seconds."""
        slot.disturbed_until = max(slot.disturbed_until, self.world.now() + max(0.0, seconds))

    def note(self, what: str) -> None:
        """Add a line to the history in words."""
        self.history.runs.append(f"{self.world.now():.4f} {what}")

    def caller(self, run: ScriptRun) -> Slot | None:
        """Return the worker that called a script; None if its arguments do not show that."""
        for slot in self.slots:
            consumer, nonce = (name.encode() for name in slot.identities)
            if consumer and any(
                arg == consumer or arg.startswith(nonce + b"-") for arg in map(bytes, run.args)
            ):
                return slot
        return None

    def open_breakers(self) -> list[ProviderName]:
        """Return the providers whose breaker is open."""
        return [
            each.name
            for each in self.providers
            if self.redis.command("HGET", self.keys.breaker(each.name), "wait") is not None
        ]

    def has_own_records(self) -> bool:
        """Whether the workers' records are those of the current processes.

        A failover may bring back the record of one that was killed.
        """
        flat: Any = self.redis.command("HGETALL", self.keys.workers) or []
        records = dict(zip(flat[::2], flat[1::2], strict=True))
        return len(records) == len(self.slots) and all(
            slot.identities[0].encode() in records.get(slot.name.encode(), b"")
            for slot in self.slots
        )

    def check_permits(self) -> None:
        """Find more sessions with a socket than the fleet may have.

        A worker that was cut off may still have the sockets of sessions that others run.
        """
        limit, now = self.plan.connections, self.world.now()
        lease_s = self.plan.lease_ms / 1_000
        with_socket = {
            session.name
            for slot in self.slots
            if not slot.host.paused and now > slot.disturbed_until + lease_s + HEARTBEAT_DELAY_S
            for session in slot.sessions
            if session.phase in (Phase.LIVE, Phase.FLUSHING)
        }
        if 0 < limit < len(with_socket) and not self.history.rollbacks:
            self.findings.append(
                Finding("permits", "", f"{len(with_socket)} sessions have a socket, not {limit}")
            )

    def _on_script(self, run: ScriptRun) -> None:
        if run.name == "take_over" and isinstance(run.reply, list):
            self._check_takeover(run)
        self.breakers.add(run)
        if isinstance(run.reply, CommandError) and NOT_LOCAL in run.reply.text:
            detail = f"{run.name} failed in its middle: it used a key that it had removed"
            self.findings.append(Finding("script", "", detail))
        self.on_script(run)

    def _check_takeover(self, run: ScriptRun) -> None:
        """Find sessions that are taken from a worker that runs them and renews its leases.

        After an outage of Redis, no lease expires for one lease (guarantees, "Failures"). A worker
        that has stopped a session, because a failover lost its events, does not renew its lease.
        """
        now, lease_s = self.world.now(), self.plan.lease_ms / 1_000
        for entry_id, _, _, owner in run.reply[0]:
            slot = self._owner(owner.decode())
            if owner == RELEASED.encode() or slot is None or slot.host.paused:
                continue
            running = {session.ownership.fence.entry_id for session in slot.sessions}
            if (
                entry_id.decode() in running
                and now > slot.disturbed_until + lease_s + HEARTBEAT_DELAY_S
            ):
                detail = f"entry {entry_id.decode()} was taken from {slot.name}, which lives"
                self.findings.append(Finding("stolen", "", detail))

    def _owner(self, consumer: str) -> Slot | None:
        return next((slot for slot in self.slots if slot.identities[0] == consumer), None)

    def _settings(self, worker_id: str, providers: Mapping[ProviderName, ProviderHost]) -> Settings:
        plan = self.plan
        return Settings(
            redis_url=self.redis.url,
            worker_id=worker_id,
            max_sessions=plan.max_sessions,
            lease_ms=plan.lease_ms,
            drain_s=plan.drain_s,
            stt_providers=plan.providers,
            stt_failover_s=plan.failover_s,
            stt_url=providers["cartesia"].url,
            stt_flux_url=providers["flux"].url,
            stt_max_connections=plan.connections,
            turn_update_interval_ms=plan.update_interval_ms,
            replay_speed=plan.replay_speed,
            max_lag_s=plan.max_lag_s,
            park_s=plan.park_s,
            turns_retention_s=RETENTION_S,
            retention_s=RETENTION_S,
            admin_addr="",
        )


def _rank(plan: FleetPlan, name: str) -> int:
    names = plan.providers.split(",")
    return names.index(name) if name in names else len(names)
