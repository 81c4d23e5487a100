"""The workers of a simulated fleet: each has a host, and one process at a time runs on it."""

from collections.abc import Mapping
from typing import Final

from tests.simulation.virtual.hosts import Host, Process
from worker.core.phases import Phase
from worker.session.session import Session
from worker.settings import Settings
from worker.stt.keys import ApiKey
from worker.worker import Worker

KEY: Final = "sim-key"


class Slot:
    """A worker id of the fleet: its host, and the current process."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host: Final = host
        self.name: Final = settings.worker_id
        self._settings = settings
        self._keys: Mapping[str, ApiKey] = {}
        self.worker: Worker | None = None
        """The worker of the current process; None while none runs."""
        self.process: Process | None = None
        self.disturbed_until = float("-inf")
        """Virtual time until which faults may keep the worker from renewing its leases."""
        self.starts = 0

    @property
    def running(self) -> bool:
        """Whether a process runs, paused or not."""
        return self.process is not None and not self.process.done and self.host.up

    @property
    def sessions(self) -> list[Session]:
        """The sessions that the worker runs."""
        return [*self.worker.running] if self.running and self.worker is not None else []

    @property
    def identities(self) -> tuple[str, str]:
        """Consumer name and nonce of the current process."""
        if self.worker is None:
            return "", ""
        leases = self.worker.context.leases
        return leases.consumer, leases.nonce

    def start(self) -> None:
        """Start a process, unless one runs."""
        if self.running:
            return
        self.starts += 1
        self.worker = None
        self.process = self.host.start(self._run, f"{self.name}.{self.starts}")

    def stop(self) -> None:
        """Do what SIGTERM does."""
        if self.worker is not None and self.running:
            self.worker.stop()

    async def _run(self) -> None:
        keys = {name: ApiKey(name, KEY) for name in self._settings.providers}
        self.worker = worker = Worker(self._settings, keys)
        await worker.run()


def states_of(session: Session) -> tuple[str, ...]:
    """Return the states of a session in both tables: its phase, and that of its turn tracker."""
    if session.phase is Phase.OVER:
        return ()
    tracker = session._state.tracker
    return session.phase.value, f"{tracker.published}/{tracker._provider}"
