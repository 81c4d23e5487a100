"""Published clients of the provider that the worker is compared with."""

from pathlib import Path
from typing import Final, NamedTuple

from tests.peers.environment import Environment

_PROGRAMS: Final = Path(__file__).with_name("clients")


class PublishedClient(NamedTuple):
    """A client, by what pip calls it and the program that drives it."""

    requirement: str
    program: Path

    @property
    def name(self) -> str:
        """Name and version."""
        package, _, version = self.requirement.partition("==")
        return f"{package.partition('[')[0]} {version}"

    @property
    def environment(self) -> Environment:
        """Where it is installed, beside the event loop that the worker has in its bench."""
        return Environment(self.requirement, "uvloop")


PUBLISHED: Final = (
    PublishedClient("cartesia[websockets]==4.2.0", _PROGRAMS / "sdk.py"),
    PublishedClient("livekit-plugins-cartesia==1.8.9", _PROGRAMS / "livekit_plugin.py"),
    PublishedClient("pipecat-ai[cartesia]==1.14.0", _PROGRAMS / "pipecat_service.py"),
)
