"""ChaosPlan of a chaos run."""

from typing import Annotated

import msgspec
from msgspec import Meta

from worker.local.emulator.engines.script_text import DRAWN, STYLES, TextStyle, draw_style


class ChaosPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a run. The same plan sends the same words and schedules the same faults.

    The worker or socket that a fault hits may differ, because it depends on the current state.
    """

    seed: int = 1
    turns: Annotated[int, Meta(ge=1)] = 300
    """Number of turns in total."""
    sessions: Annotated[int, Meta(ge=1, le=200)] = 16
    """Maximum number of concurrent sessions."""
    workers: Annotated[int, Meta(ge=1, le=16)] = 3
    providers: str = "cartesia"
    """Names of the providers. With two, some sessions ask for one by its name or a language."""
    mixed: bool = False
    """Whether workers have the providers in different orders, and one has only the first."""
    lease_ms: Annotated[int, Meta(ge=2_000)] = 2_000
    latency_ms: Annotated[float, Meta(ge=0)] = 150.0
    """Event latency of the provider."""
    rewording: bool = False
    """Whether the provider returns longer and shorter words in a replay."""
    every_s: Annotated[float, Meta(gt=0)] = 2.0
    """Mean seconds between two faults."""
    faults: tuple[str, ...] = ()
    """Names of the faults to inject; empty for all."""
    connections: Annotated[int, Meta(ge=0)] = 0
    """Maximum sockets of the fleet at the provider; 0 for no limit."""
    max_lag_s: Annotated[float, Meta(ge=0)] = 20.0
    """`TURNBUS_MAX_LAG_S` of the workers."""
    long_every: Annotated[int, Meta(ge=0)] = 60
    """On average, one turn in this many is longer than `max_lag_s`; 0 for none."""

    text_style: str = DRAWN
    """Separators of the provider's transcripts, by name, or drawn with the seed."""

    @property
    def provider_names(self) -> tuple[str, ...]:
        """Names of the providers, the preferred one first."""
        return tuple(self.providers.split(","))

    def providers_of(self, worker: int) -> tuple[str, ...]:
        """Return the providers of a worker, counted from 0."""
        names = self.provider_names
        if not self.mixed:
            return names
        return (names, names[::-1], names[:1])[worker % 3]

    @property
    def text_style_name(self) -> str:
        """Name of the text style, given or drawn."""
        if self.text_style == DRAWN:
            return draw_style(self.seed, rewording=self.rewording)
        return self.text_style

    @property
    def style(self) -> TextStyle:
        """Text style of the provider."""
        return STYLES[self.text_style_name]

    @property
    def repeat(self) -> str:
        """Return the command line options for this plan."""
        words = []
        for name, value in msgspec.structs.asdict(self).items():
            if value == getattr(ChaosPlan(), name) and name not in ("seed", "turns"):
                continue
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif isinstance(value, tuple):
                words += [option, ",".join(value)]
            elif isinstance(value, float):
                words += [option, f"{value:g}"]
            else:
                words += [option, str(value)]
        return " ".join(words)
