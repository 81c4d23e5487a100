"""Settings of the local STT server."""

from typing import Literal

import msgspec

from worker.local.emulator.engines.base import TurnSettings


class FluxSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Choices of the Flux protocol that its documentation leaves open.

    Words have times unless `word_times` is false. `EndOfTurn` has a trigger unless `trigger` is
    false, as on older deployments. Without `force_end_turn` the server does not know that message.
    With `any_rate` every sample rate is accepted, not only the five documented ones. Audio faster
    than `throttle` times real time waits; None for no limit. The server sends close frames with
    `close_code` after `CloseStream`, an `Error` or the idle timeout; 1005 is a frame without a
    code.
    """

    models: tuple[str, ...] = ("flux-general-en", "flux-general-multi")
    idle_timeout_s: float = 60.0
    word_times: bool = True
    trigger: bool = True
    force_end_turn: bool = True
    any_rate: bool = False
    throttle: float | None = None
    close_code: int = 1005


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Listening address, limits, and the choices that the provider's documentation leaves open.

    `port` 0 selects a free port. `api_keys` are the accepted keys and access tokens; None accepts
    any that is not empty. `flux` are the choices of the provider `flux`, which has its own models
    and idle timeout; `turn`, `refuse_in_band`, `turn_id`, `config_ack` and `leading_space` are
    those of Cartesia. `max_connections` is the maximum number of open sockets, None for no
    limit. `models` are served, as are their snapshots (`ink-2-2026-09-01`).

    The other settings cover what the provider's documentation leaves open; each value has been
    observed or is plausible. `turn` are the default turn settings: the documentation names two
    sets of defaults, these are the newer ones. With `refuse_in_band` an invalid key or version and
    an exceeded limit are reported by an `error` and close 1008 after the upgrade, not by an HTTP
    status. `turn_id` adds this field to every turn event. `config_ack` answers a `config` with the
    resulting settings. Without `leading_space` the transcripts of later turns do not begin with a
    separating space. With `text_resets_idle` text messages reset the idle timeout, too. A session
    ends after `max_session_s` seconds with close 1001, None for no limit. A message of more than
    `max_message` bytes closes with 1009. The server pings every `ping_s` seconds, and closes with
    1011 without an answer within the same time; None for no pings.
    """

    provider: Literal["cartesia", "flux"] = "cartesia"
    flux: FluxSettings = FluxSettings()
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
        """Return the address only; keys must not be logged."""
        return f"ServerSettings({self.host}:{self.port})"
