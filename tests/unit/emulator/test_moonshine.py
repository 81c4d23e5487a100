"""The recognizer on real speech."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.sounds import samples_of
from worker.errors import MissingExtraError
from worker.local.clips import CLIPS
from worker.local.emulator.engines.moonshine import Moonshine
from worker.local.emulator.engines.speech_audio import RATE, Samples
from worker.local.wer import word_error_rate

KENNEDY = CLIPS[0]


@pytest.fixture(scope="module")
def moonshine() -> Moonshine:
    return Moonshine()


@pytest.fixture(scope="module")
def kennedy() -> Samples:
    return samples_of(KENNEDY.path, RATE)


def test_recognizer_transcribes_speech(moonshine: Moonshine, kennedy: Samples) -> None:
    text = moonshine.text(moonshine.decode(kennedy))
    assert text == text.strip()
    assert text.isprintable()
    assert word_error_rate([KENNEDY.transcript], [text]) < 0.15


def test_recognizer_continues_given_text(moonshine: Moonshine, kennedy: Samples) -> None:
    spoken = moonshine.decode(kennedy)
    some = spoken[: next(at for at in range(5, 20) if moonshine.starts_word(spoken[at]))]
    assert moonshine.decode(kennedy, some) == spoken
    # It continues other words equally well, though the audio does not contain them.
    other = moonshine.decode(kennedy[RATE * 3 :])
    going_on = moonshine.decode(kennedy, other[:2])
    assert going_on[:2] == other[:2]
    assert len(going_on) > 2
    assert moonshine.starts_word(going_on[2])


@pytest.mark.parametrize("samples", [0, 1, 500, 3000])
def test_short_audio_gives_few_tokens(moonshine: Moonshine, samples: int) -> None:
    assert len(moonshine.decode(np.zeros(samples, np.float32))) <= 2


def test_recognizer_serves_many_threads(moonshine: Moonshine, kennedy: Samples) -> None:
    parts = [kennedy[:RATE], kennedy[: 2 * RATE], kennedy[RATE : 3 * RATE]] * 3
    alone = [moonshine.decode(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(moonshine.decode, parts)) == alone


def test_unexpected_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tmp_path / "moonshine_voice/assets/tiny-en"
    assets.mkdir(parents=True)
    (tmp_path / "moonshine_voice/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    advice = r"moonshine-voice==0\.1\.0 is .* run: pip install 'turnbus\[local\]'$"
    with pytest.raises(MissingExtraError, match=advice) as missing:
        Moonshine()
    assert "without assets/tiny-en/tokenizer.bin" in str(missing.value)
    (assets / "tokenizer.bin").write_bytes(b"\x01a")
    with pytest.raises(MissingExtraError, match=advice) as changed:
        Moonshine()
    assert "changed assets/tiny-en/tokenizer.bin" in str(changed.value)
