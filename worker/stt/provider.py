"""What differs between providers: data, and the class that speaks the protocol of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from schemas.audio import Encoding, TurnConfig
from worker.stt.proxy import Proxy

if TYPE_CHECKING:
    from worker.stt.stream import Stream


def _ignore(line: str) -> None:
    """Ignore a finding."""


class Notes(NamedTuple):
    """Callbacks for what a stream finds. A line contains nothing of any message."""

    defect: Callable[[str], None] = _ignore
    """Called with the defect of each message that is not fully readable."""
    unusable: Callable[[str], None] = _ignore
    """Called with a line for each setting that the provider cannot use."""


NO_NOTES = Notes()


@dataclass(frozen=True)
class Endpoint:
    """Address of a provider, with the API version if it has any, the key and the proxy."""

    url: str
    version: str
    key: str = field(repr=False)
    proxy: Proxy | None = field(default=None, repr=False)

    def redact(self, text: str) -> str:
        """Return a text of the provider with the API key in it masked."""
        return text.replace(self.key, "[key]") if self.key else text


class StreamSettings(msgspec.Struct, frozen=True):
    """Settings of one connection; the turn settings have the names of the bus."""

    model: str
    encoding: Encoding
    sample_rate: int
    keyterms: tuple[str, ...] = ()
    language: str = ""
    """Language to name to the model; empty if it takes no hint."""
    turn: TurnConfig = TurnConfig()


@dataclass(frozen=True)
class Provider:
    """One provider. The worker asks for what it can do, and never for its name."""

    name: str
    """Name in events, settings and spans."""
    stream: "type[Stream]"
    """Speaks its protocol on one socket."""
    frame_ms: float = 100.0
    """Maximum duration of a slice of audio. Chunks above twice this are sliced."""
    max_speed: float = 0.0
    """Maximum pace of a backlog, in times real time; 0 if the provider documents none."""
    max_idle_s: float = float("inf")
    """Time without audio after which the provider closes a socket, pings or not."""
    word_times: bool = False
    """Whether events have the times of words and of what was transcribed."""
    forces_end: bool = False
    """Whether a command ends the open turn, on the same socket."""
    text_may_shrink: bool = False
    """Whether the text of an open turn is revised, so that the last text of a turn is its best."""
    bare_text: bool = False
    """Whether the texts of turns have no space at their beginning, and are joined with one."""
    flush_ends_turn: bool = True
    """Whether the end of the stream ends the open turn."""
    max_silent_ms: float = 0.0
    """Audio after which a socket without any message is stuck, also between turns; 0 if the
    provider may be silent for any time."""

    async def open(
        self,
        endpoint: Endpoint,
        settings: StreamSettings,
        notes: Notes = NO_NOTES,
    ) -> "Stream":
        """Connect and wait until the provider has accepted the settings.

        Raises an `SttError` if the provider rejects the upgrade or the settings.
        """
        return await self.stream.open(self, endpoint, settings, notes)
