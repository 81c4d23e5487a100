"""Bytes to windows, windows to segments."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import Encoding
from tests.support.sounds import wire
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.speech_audio import (
    RATE,
    WINDOW,
    Framer,
    Samples,
    Segment,
    windows,
)


def tone(seconds: float) -> Samples:
    at = np.arange(int(RATE * seconds)) / RATE
    return (0.5 * np.sin(2 * np.pi * 300 * at)).astype(np.float32)


def frame(audio: AudioFormat, chunks: list[bytes]) -> Samples:
    framer = Framer(audio)
    got = [window for chunk in chunks for window in framer.take(chunk)] + list(framer.end())
    assert {window.shape for window in got} == {(WINDOW,)}
    return np.concatenate(got)


def test_bytes_become_windows() -> None:
    assert windows(0.4) == 12
    assert windows(0.032) == 1


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_windows_are_independent_of_chunking(encoding: str, rate: int) -> None:
    audio = AudioFormat(encoding, rate)
    data = wire(tone(0.7), RATE, audio)
    pick = random.Random(rate)
    chunks = []
    at = 0
    while at < len(data):
        size = pick.choice([1, 3, 160, 4001])
        chunks.append(data[at : at + size])
        at += size
    whole = frame(audio, [data])
    np.testing.assert_array_equal(frame(audio, chunks), whole)
    inner = slice(RATE // 20, RATE // 2)
    np.testing.assert_allclose(whole[inner], tone(0.7)[inner], atol=0.02)


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_audio_can_continue_after_end(rate: int) -> None:
    audio = AudioFormat("pcm_s16le", rate)
    data = wire(tone(0.5), RATE, audio)
    framer = Framer(audio)
    first, second = (np.concatenate([*framer.take(data), *framer.end()]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_end_without_audio_gives_no_window() -> None:
    assert list(Framer(AudioFormat("pcm_mulaw", 8_000)).end()) == []


def level(value: float) -> Samples:
    return np.full(WINDOW, value, np.float32)


def test_cut_keeps_position() -> None:
    segment = Segment()
    for voiced in (False, True, True, False, True, False):
        segment.append(level(0.1), voiced=voiced)
    assert (len(segment), segment.speech, segment.speech_end) == (6, 3, 5)
    assert len(segment.audio(2)) == 2 * WINDOW
    segment.cut(2)
    assert (len(segment), segment.speech, segment.speech_end) == (4, 2, 3)
    segment.cut(3)
    assert (len(segment), segment.speech, segment.speech_end) == (1, 0, 0)


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 20))
def test_cut_audio_leaves_no_trace(voices: list[bool], at: int) -> None:
    cut, rest = Segment(), Segment()
    for voiced in voices:
        cut.append(level(0), voiced=voiced)
    cut.cut(at)
    for voiced in voices[at:]:
        rest.append(level(0), voiced=voiced)
    assert (len(cut), cut.speech, cut.speech_end) == (len(rest), rest.speech, rest.speech_end)


def test_quietest_place_is_found() -> None:
    segment = Segment()
    for value in (0.0, 0.0, 0.0, 0.5, 0.5, 0.1, 0.1, 0.2, 0.5, 0.05, 0.5):
        segment.append(level(value), voiced=True)
    assert segment.quietest(0) == 1
    assert segment.quietest(2) == 6  # a dip as a whole, not one quiet window
