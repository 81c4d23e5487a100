"""When a session leaves a provider that is stuck inside a turn: soon, and never without reason.

The speech is recorded, and so are its pauses. The messages of the provider are simulated: one for
each 0.25 s of audio with speech. Single ones come up to three seconds late.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.audio import AudioEntry, Encoding
from tests.simulation.lines import LATER, Line
from tests.simulation.provider_model import Delays, Link
from tests.simulation.speech import AUDIO, BYTES_PER_MS
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.core.turn_boundary import quiet_level
from worker.core.unanswered_speech import MAX_LAG_MS, UnansweredTurn
from worker.local.clips import CLIPS
from worker.local.pcm import PcmDecoder, encode
from worker.local.sound import SoundSource
from worker.session.sender import AudioSender
from worker.telemetry.counters import Counters

Samples = NDArray[np.float32]

FAILOVER_S = 2.0
STEP_MS = 20
TICK_MS = 400
"""Interval between the checks of a socket."""
UPDATE_MS = 250
VOICES = range(len(CLIPS))


@cache
def voice(number: int) -> Samples:
    """Return a recording, as loud at its loudest as the others."""
    with CLIPS[number].path.open("rb") as file:
        source = SoundSource(file, str(CLIPS[number].path))
        sound = b"".join(source.encode(AUDIO))
    samples = PcmDecoder(AUDIO).decode(sound)
    return np.asarray(0.7 * samples / np.abs(samples).max(), np.float32)


def _levels(sound: Samples) -> list[int]:
    """Return the loudness of each 10 ms."""
    frames = sound[: len(sound) // 80 * 80].reshape(-1, 80)
    return [int(level) for level in np.abs(frames).mean(axis=1) * 32_767]


def updates(rng: random.Random, sound: Samples, late_s: float) -> list[float]:
    """Return when the messages about speech arrive, in milliseconds."""
    levels = _levels(sound)
    quiet = quiet_level(levels)
    late_share = 0.1 if late_s else 0.0
    delays = Delays(rng.uniform(0.05, 0.6), 0.0, late_share, late_s / 2, max_late_s=late_s)
    link, times = Link(rng, delays), []
    for end in range(UPDATE_MS, 10 * len(levels) + 1, UPDATE_MS):
        frames = levels[(end - UPDATE_MS) // 10 : end // 10]
        if sum(level > quiet for level in frames) < 3:
            continue
        times.append(1_000 * link.arrival(end / 1_000))
    return times


class Chunk(NamedTuple):
    """Audio that is sent at some time of the call."""

    at_ms: float
    audio: bytes


def chunks(sound: Samples, speed: float = 1.0) -> Iterator[Chunk]:
    """Yield the chunks of a sound that is sent at this speed; 0 is all at once."""
    audio, size = encode(sound, AUDIO.encoding), STEP_MS * BYTES_PER_MS
    for begin in range(0, len(audio), size):
        piece = audio[begin : begin + size]
        end_ms = (begin + len(piece)) / BYTES_PER_MS
        yield Chunk(end_ms / speed if speed else 0.0, piece)


def left_after(sent: Sequence[Chunk], messages: Sequence[float], until_ms: float) -> float | None:
    """Return when the session leaves its provider; None if it stays."""
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, AUDIO.sample_rate, ledger, Pacer(0), Counters())
    sender.attach(Line(), LATER)
    unanswered = UnansweredTurn(FAILOVER_S)
    message_ms, count, heard = 0.0, 0, 0
    for tick in range(TICK_MS, int(until_ms), TICK_MS):
        steps = range(tick - TICK_MS + STEP_MS, tick + 1, STEP_MS)
        for step in steps:
            now = LATER + step / 1_000
            while count < len(sent) and sent[count].at_ms <= step:
                count += 1
                ledger.admit(f"{count}-0", AudioEntry(audio=sent[count - 1].audio))
                sender.enqueue(sent[count - 1].audio)
            sender.drain(now)
            while heard < len(messages) and messages[heard] <= step:
                heard += 1
                message_ms = sender.ms_of(sender.socket_bytes)
        sent_ms = sender.ms_of(sender.socket_bytes)
        window_ms = unanswered.window_due(now, message_ms, sent_ms)
        if window_ms:
            audio = sender.sent_audio(
                sender.send_log.moment(now), window_ms, unanswered.least_quiet
            )
            unanswered.observe(audio.silent, audio.quiet)
        if unanswered.is_stuck(0):
            return float(tick)
    return None


def _whole(sound: Samples) -> float:
    return len(sound) / AUDIO.sample_rate * 1_000


@pytest.mark.parametrize("late_s", [0.0, MAX_LAG_MS / 1_000])
@pytest.mark.parametrize("speed", [1.0, 1.5, 0.0], ids=["live", "replay", "at once"])
def test_late_messages_are_waited_for(speed: float, late_s: float) -> None:
    """The provider transcribes in real time, however fast the audio is sent."""
    for number in VOICES:
        sound = voice(number)
        for seed in range(5):
            messages = updates(random.Random(f"{number} {seed}"), sound, late_s)
            left = left_after([*chunks(sound, speed)], messages, messages[-1])
            assert left is None, (number, seed)


def _noise(level: float, samples: int) -> Samples:
    noise = np.random.default_rng(7).normal(0, level, samples)
    return np.asarray(np.clip(noise, -1, 1), np.float32)


def _hum(level: float, samples: int) -> Samples:
    at = np.arange(samples) / AUDIO.sample_rate
    return np.asarray(level * np.sin(2 * np.pi * 100 * at), np.float32)


def _clicks(level: float, samples: int) -> Samples:
    """Return typing: a click of 15 ms about four times a second."""
    rng, sound = np.random.default_rng(7), _noise(0.001, samples)
    for begin in rng.integers(0, samples - 120, samples * 4 // AUDIO.sample_rate):
        sound[begin : begin + 120] += _noise(level, 120)
    return sound


def _voices(level: float, samples: int) -> Samples:
    """Return the talk of several people, which is not as loud as the speaker."""
    mixed = np.sum([np.resize(voice(number), samples) for number in (0, 2, 5)], axis=0)
    return np.asarray(level * mixed, np.float32)


BACKGROUNDS = {
    "silence": _noise(0, 160_000),
    "line": _noise(0.002, 160_000),
    "loud line": _noise(0.03, 160_000),
    "hum": _hum(0.05, 160_000),
    "typing": _clicks(0.3, 160_000),
    "voices": _voices(0.1, 160_000),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_sound_after_the_speaker_is_no_evidence(background: str) -> None:
    """The turn stays open, as the provider expects more: it sends nothing for 11 s."""
    for number in VOICES:
        spoken = voice(number)
        behind = BACKGROUNDS[background]
        sound = np.concatenate([spoken, np.zeros(88_000, np.float32)])
        sound = np.asarray(sound + np.resize(behind, len(sound)), np.float32)
        messages = updates(random.Random(number), spoken, late_s=0.0)
        assert left_after([*chunks(sound)], messages, _whole(sound)) is None, number


def test_long_pauses_of_the_speaker_are_no_evidence() -> None:
    for number, other in pairwise(VOICES):
        pause = np.zeros(72_000, np.float32)
        sound = np.concatenate([voice(number), pause, voice(other)])
        messages = updates(random.Random(number), sound, late_s=MAX_LAG_MS / 1_000)
        assert left_after([*chunks(sound)], messages, messages[-1]) is None


def test_stuck_provider_is_left_while_somebody_speaks() -> None:
    waits_ms = []
    for number in VOICES:
        sound = np.concatenate([voice(number), voice((number + 1) % len(VOICES))])
        for last in np.arange(3_000, _whole(sound) - 12_000, 1_500):
            messages = [at for at in updates(random.Random(number), sound, 0.0) if at <= last]
            left = left_after([*chunks(sound)], messages, _whole(sound))
            waits_ms.append(float("inf") if left is None else left - messages[-1])
    shares = [sum(wait < limit for wait in waits_ms) / len(waits_ms) for limit in (6_100, 9_000)]
    assert shares[0] > 0.65, sorted(waits_ms)
    assert shares[1] > 0.85, sorted(waits_ms)  # a window may hold a long pause
    assert min(waits_ms) >= MAX_LAG_MS + FAILOVER_S * 1_000
