"""A turn event that names its turn and its part of the audio, as Flux sends them."""

from worker.local.emulator.engines.base import EngineEvent


class TurnInfo(EngineEvent, frozen=True):
    """An event of turn `turn_index`, from `window_start_s` to `decoded_s` of the audio."""

    turn_index: int = 0
    window_start_s: float = 0.0
