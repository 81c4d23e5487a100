"""The providers of a simulated fleet: the emulator's code, each on its own virtual host."""

from typing import Final, Literal

import anyio

from tests.simulation.fleet.plan import FleetPlan
from tests.simulation.fleet.workers import KEY
from tests.simulation.virtual.hosts import Host
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

PORT: Final = 8765

ProviderName = Literal["cartesia", "flux"]


class ProviderHost:
    """One provider."""

    def __init__(self, host: Host, name: ProviderName, plan: FleetPlan) -> None:
        self.host: Final = host
        self.name: Final = name
        self._options = ScriptOptions(
            latency_ms=plan.latency_ms,
            rewording=plan.seed if plan.rewording else None,
            text_style=plan.text_style,
        )
        self._settings = ServerSettings(
            provider=name, host=host.address, port=PORT, api_keys=frozenset({KEY})
        )
        self.server: TurnsServer | None = None
        """The server; None before it listens."""

    @property
    def url(self) -> str:
        """URL of the WebSocket endpoint."""
        path = "/stt/turns/websocket" if self.name == "cartesia" else "/v2/listen"
        return f"ws://{self.host.address}:{PORT}{path}"

    @property
    def sockets(self) -> int:
        """Number of sockets that were opened so far."""
        return self.server.state().upgraded if self.server is not None else 0

    def start(self) -> None:
        """Start the server's process."""
        self.host.start(self._serve, self.name)

    async def _serve(self) -> None:
        async with TurnsServer.serve(self._settings, ScriptEngine(self._options)) as self.server:
            await anyio.sleep_forever()
