"""The plan of a chaos run."""

from typing import Annotated

import msgspec
from msgspec import Meta

from worker.local.emulator.engines.script_text import DRAWN, STYLES, TextStyle, draw_style


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. The same plan says the same words, and breaks the same at the same times.

    Only which worker or socket a fault hits can differ, where that hangs on what there is then.
    """

    seed: int = 1
    turns: Annotated[int, Meta(ge=1)] = 300
    """Said in all."""
    sessions: Annotated[int, Meta(ge=1, le=200)] = 16
    """At once, at most."""
    workers: Annotated[int, Meta(ge=1, le=16)] = 3
    lease_ms: Annotated[int, Meta(ge=2_000)] = 2_000
    latency_ms: Annotated[float, Meta(ge=0)] = 150.0
    """How late the STT service speaks."""
    rewording: bool = False
    """The service words a replay differently, longer and shorter."""
    every_s: Annotated[float, Meta(gt=0)] = 2.0
    """Between two faults, on average."""
    faults: tuple[str, ...] = ()
    """Those by name; without any, all."""
    connections: Annotated[int, Meta(ge=0)] = 0
    """Sockets the service allows the fleet; 0 is no cap."""
    max_lag_s: Annotated[float, Meta(ge=0)] = 20.0
    """`TURNBUS_MAX_LAG_S` of the workers."""
    long_every: Annotated[int, Meta(ge=0)] = 60
    """One turn in so many is longer than `max_lag_s`, on average; 0 is none."""

    text_style: str = DRAWN
    """Separators of the service's transcripts, by name, or drawn by the seed."""

    @property
    def text_style_name(self) -> str:
        """The text style that is named, or drawn."""
        if self.text_style == DRAWN:
            return draw_style(self.seed, rewording=self.rewording)
        return self.text_style

    @property
    def style(self) -> TextStyle:
        """The text style of the service."""
        return STYLES[self.text_style_name]

    @property
    def repeat(self) -> str:
        """Return the options of the command line that ask for this plan."""
        words = []
        for name, value in msgspec.structs.asdict(self).items():
            if value == getattr(Plan(), name) and name not in ("seed", "turns"):
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
