"""The bundled clips exist, are small and documented, and have the documented format."""

from pathlib import Path

import av

from tests.support.clips import tale_of_two_cities
from tests.support.sounds import open_sound, samples_of
from worker.local import clips
from worker.local.clips import CLIPS
from worker.local.wer import words


def test_clip_has_documented_format() -> None:
    for clip in CLIPS:
        with av.open(clip.path) as file:
            (stream,) = file.streams.audio
            assert (file.format.name, stream.rate, stream.channels) == ("flac", 16_000, 1)
        seconds = len(samples_of(clip.path, 16_000)) / 16_000
        assert 9 < seconds < 25, "a demo plays them whole"
        assert 1 < len(words(clip.transcript)) / seconds < 4, "the text is of this clip"


def test_every_clip_is_described_once() -> None:
    bundled = sorted(Path(str(clips.__file__)).parent.glob("*.flac"))
    assert sorted(clip.path for clip in CLIPS) == bundled
    assert sum(path.stat().st_size for path in bundled) < 2_500_000


def test_clips_have_license() -> None:
    for clip in (*CLIPS, tale_of_two_cities()):
        assert clip.source
        assert clip.licence.startswith(("public domain", "BSD-2-Clause", "MIT"))
    assert len({clip.speaker for clip in CLIPS}) >= 4
    licence = Path(str(clips.__file__)).with_name("PocketSphinx.txt").read_text()
    assert "Redistributions in binary form must reproduce" in licence


def test_two_cities_clip_comes_from_other_package() -> None:
    path = tale_of_two_cities().path
    with path.open("rb") as file, open_sound(file) as sound:
        assert sound.seconds is not None
        assert round(sound.seconds) == 44
    with av.open(path) as opened:
        assert opened.streams.audio[0].rate == 48_000
