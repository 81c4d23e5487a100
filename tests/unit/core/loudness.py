"""Loudness of audio, as the worker computes it once it has sent that audio."""

from schemas.audio import Encoding
from worker.core.levels import LevelBuffer


def loudness(audio: bytes, encoding: Encoding, rate: int) -> list[int]:
    """Return the level of every whole frame of `audio`, sent at once."""
    sound = LevelBuffer(encoding, rate, keep_ms=600_000)
    sound.add(audio)
    start, levels = sound.levels(0, len(audio))
    assert start == 0
    return levels
