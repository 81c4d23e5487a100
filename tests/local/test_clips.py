"""The bundled clips are there, described, small, and of the form they are said to be."""

from pathlib import Path

import soundfile

from worker.local import clips
from worker.local.clips import CLIPS, two_cities
from worker.local.wer import words


def test_form() -> None:
    for clip in CLIPS:
        about = soundfile.info(clip.path)
        assert (about.format, about.samplerate, about.channels) == ("FLAC", 16_000, 1)
        assert 9 < about.duration < 25, "a demo plays them whole"
        assert 1 < len(words(clip.transcript)) / about.duration < 4, "the text is of this clip"


def test_every_file_is_described_once() -> None:
    bundled = sorted(Path(str(clips.__file__)).parent.glob("*.flac"))
    assert sorted(clip.path for clip in CLIPS) == bundled
    assert sum(path.stat().st_size for path in bundled) < 2_500_000


def test_right_to_use() -> None:
    for clip in (*CLIPS, two_cities()):
        assert clip.source
        assert clip.licence.startswith(("public domain", "BSD-2-Clause", "MIT"))
    assert len({clip.speaker for clip in CLIPS}) >= 4
    licence = Path(str(clips.__file__)).with_name("PocketSphinx.txt").read_text()
    assert "Redistributions in binary form must reproduce" in licence


def test_two_cities_lies_in_another_package() -> None:
    about = soundfile.info(two_cities().path)
    assert (about.samplerate, round(about.duration)) == (48_000, 44)
