"""The providers of a simulated fleet: the emulator's code, each on its own virtual host."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final, Literal

import anyio
import msgspec

from tests.simulation.fleet.plan import FleetPlan
from tests.simulation.fleet.workers import KEY
from tests.simulation.provider_model import Delays, Link
from tests.simulation.virtual.hosts import Host
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions, ScriptStream, _Delay
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

PORT: Final = 8765

LATE_SHARE: Final = 0.03
"""Share of Flux's messages that are late. Without word times a worker tolerates few of them."""

HASTE: Final = 0.15
"""How much sooner a hasty connection takes a turn for ended: 120 ms of silence less."""

ProviderName = Literal["cartesia", "flux"]


class ProviderHost:
    """One provider."""

    def __init__(self, host: Host, name: ProviderName, plan: FleetPlan) -> None:
        self.host: Final = host
        self.name: Final = name
        options = ScriptOptions(
            rewording=plan.seed if plan.rewording else None, text_style=plan.text_style
        )
        late_share = LATE_SHARE if plan.late_s and name == "flux" else 0.0
        delays = Delays(plan.latency_ms / 1_000, 0.0, late_share, plan.late_s)
        self._engine = FleetEngine(options, delays, plan.hasty_share, Random(f"{plan.seed} {name}"))
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


class FleetEngine(ScriptEngine):
    """The script engine, whose messages leave as late as those of the pure calls.

    Some connections are hasty: they end turns at shorter pauses. Recognizers are not deterministic,
    so a replay may end a turn at a pause that did not end it.
    """

    def __init__(
        self, options: ScriptOptions, delays: Delays, hasty_share: float, rng: Random
    ) -> None:
        super().__init__(options)
        self._delays = delays
        self._hasty_share = hasty_share
        self._rng = rng

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> ScriptStream:
        """Create the stream of one connection."""
        if self._rng.random() < self._hasty_share:
            turn = msgspec.structs.replace(turn, end=turn.end + HASTE)
        delay = _LinkDelay(Link(self._rng, self._delays), emit)
        stream = super().open(audio, turn, keyterms, delay.emit)
        stream._delay = delay
        return stream


class _LinkDelay(_Delay):
    """Emits each event when a link delivers it."""

    def __init__(self, link: Link, emit: Callable[[EngineEvent], None]) -> None:
        super().__init__(0.0, emit)
        self._link = link

    def emit(self, event: EngineEvent) -> None:
        """Schedule an event."""
        loop = asyncio.get_running_loop()
        timer = loop.call_at(self._link.arrival(loop.time()), self._emit_first)
        self._waiting.append((event, timer))
