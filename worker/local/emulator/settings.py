"""What an operator of the local turns server chooses."""

import msgspec

from worker.local.emulator.engines.base import TurnSettings


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server listens, whom it serves, and how it reads the provider's silence.

    `port` 0 takes a free one. `api_keys` are the keys and access tokens let in, None any that is
    not empty. `max_connections` is the cap on open sockets, None for no cap. `models` are served,
    and their snapshots (`ink-2-2026-09-01`) too.

    The rest is what the provider's documents leave open; each value has been seen, or is as likely
    as the other. `turn` are the settings of a connection that asks for none: the documents name
    two sets of defaults, these are the newer ones. With `refuse_in_band` a wrong key or version and
    a full cap are told by an `error` and close 1008 after the upgrade, not by an HTTP status.
    `turn_id` puts such a field on every turn event. `config_ack` answers a `config` with the
    settings it led to. Without `leading_space` the transcript of a later turn does not begin with
    the space that parts it from the one before. With `text_resets_idle` text resets the idle
    clock, too. A session ends after `max_session_s` seconds with close 1001, None for no end. A
    message of more than `max_message` bytes closes with 1009. Every `ping_s` seconds the server
    pings, and closes with 1011 if the answer takes as long; None for no pings.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    api_keys: frozenset[str] | None = None
    max_connections: int | None = None
    models: tuple[str, ...] = ("ink-2",)
    idle_timeout_s: float = 180.0
    turn: TurnSettings = TurnSettings()
    refuse_in_band: bool = False
    turn_id: bool = False
    config_ack: bool = False
    leading_space: bool = True
    text_resets_idle: bool = False
    max_session_s: float | None = None
    max_message: int = 16 * 2**20
    ping_s: float | None = None

    def __repr__(self) -> str:
        """Show where it listens; keys are not for logs."""
        return f"ServerSettings({self.host}:{self.port})"
