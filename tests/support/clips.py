"""A recording longer than the bundled clips, from the package of the recognizer's weights."""

from typing import Final

from worker.local.clips import Clip
from worker.local.emulator.engines.weights import PackagedFile

_TWO_CITIES: Final = PackagedFile(
    "moonshine-voice==0.1.0",
    "moonshine_voice",
    "assets/two_cities.wav",
    "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
)


def tale_of_two_cities() -> Clip:
    """Return the opening of A Tale of Two Cities, 44 s at 48 kHz.

    Raises MissingExtraError if the package that contains it is not installed.
    """
    return Clip(
        path=_TWO_CITIES.locate(),
        speaker="not named",
        transcript=(
            "It was the best of times, it was the worst of times, it was the age of wisdom, it "
            "was the age of foolishness, it was the epoch of belief, it was the epoch of "
            "incredulity, it was the season of light, it was the season of darkness, it was the "
            "spring of hope, it was the winter of despair. We had everything before us, we had "
            "nothing before us, we were all going direct to heaven, we were all going direct the "
            "other way. In short, the period was so far like the present period, that some of "
            "its noisiest authorities insisted on its being received, for good or for evil, in "
            "the superlative degree of comparison only."
        ),
        licence="MIT (moonshine-voice)",
        source="Charles Dickens, A Tale of Two Cities; assets/two_cities.wav of moonshine-voice",
    )
