"""The providers of a simulated fleet: the emulator's code, each on its own virtual host."""

import random
from collections.abc import Callable
from typing import Final, Literal

import anyio
import msgspec

from tests.simulation.fleet.plan import FleetPlan
from tests.simulation.fleet.workers import KEY
from tests.simulation.virtual.hosts import Host
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions, ScriptStream
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

PORT: Final = 8765

ProviderName = Literal["cartesia", "flux"]


HASTE: Final = 0.15
"""How much sooner a hasty connection takes a turn for ended: 120 ms of silence less."""


class HastyEngine(ScriptEngine):
    """Ends turns at shorter pauses on a share of the connections.

    Recognizers are not deterministic: a replay may end a turn at a pause that did not end it.
    """

    def __init__(self, options: ScriptOptions, share: float, rng: random.Random) -> None:
        super().__init__(options)
        self._share = share
        self._rng = rng

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> ScriptStream:
        """Create the stream of one connection."""
        if self._rng.random() < self._share:
            turn = msgspec.structs.replace(turn, end=turn.end + HASTE)
        return super().open(audio, turn, keyterms, emit)


class ProviderHost:
    """One provider."""

    def __init__(self, host: Host, name: ProviderName, plan: FleetPlan) -> None:
        self.host: Final = host
        self.name: Final = name
        options = ScriptOptions(
            latency_ms=plan.latency_ms,
            rewording=plan.seed if plan.rewording else None,
            text_style=plan.text_style,
        )
        self._engine = HastyEngine(options, plan.hasty_share, random.Random(f"{plan.seed} {name}"))
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
        async with TurnsServer.serve(self._settings, self._engine) as self.server:
            await anyio.sleep_forever()
