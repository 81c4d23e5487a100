"""What an operator of the local turns server chooses."""

import msgspec

from worker.local.engines.base import TurnSettings

MAX_MESSAGE = 16 * 2**20
"""Bytes of the largest message taken; a larger one closes the connection with 1009."""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server listens and whom it serves.

    `port` 0 takes a free one. `api_keys` are the keys and access tokens let in, None any that is
    not empty. `max_connections` is the cap on open sockets, None for no cap. `turn` are the
    settings of a connection that asks for none; the provider's documents name two sets of
    defaults, these are the newer ones.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    api_keys: frozenset[str] | None = None
    max_connections: int | None = None
    idle_timeout_s: float = 180.0
    turn: TurnSettings = TurnSettings()

    def __repr__(self) -> str:
        """Show where it listens; keys are not for logs."""
        return f"ServerSettings({self.host}:{self.port})"
