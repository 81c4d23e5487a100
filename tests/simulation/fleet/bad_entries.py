"""Entries that a worker has to reject: what is wrong with each kind, and how it is reported.

A bad session entry becomes a dead letter, and its session ends with an error before it begins. A
bad audio entry is reported in its session, whose other audio stays intact.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from schemas.audio import MAX_AUDIO_BYTES, MAX_METADATA_BYTES
from tests.simulation.fleet.plan import BadAudioKind, BadEntryKind

Fields = Mapping[str, bytes | str]


class BadSession(NamedTuple):
    """One kind of bad session entry."""

    reasons: tuple[str, ...]
    """Reasons of which its dead letter has one."""
    changes: Mapping[str, str | None]
    """Fields of a good entry that are replaced, or removed."""
    published: bool = True
    """Whether its session gets events: not without a usable id, nor if another one has the id."""


BAD_SESSIONS: Final[Mapping[BadEntryKind, BadSession]] = {
    "unknown-encoding": BadSession(("encoding",), {"encoding": "mp3"}),
    "missing-rate": BadSession(("missing",), {"sample_rate": None}),
    "bad-rate": BadSession(("malformed",), {"sample_rate": "fast"}),
    "bad-json": BadSession(("malformed",), {"metadata": "{"}),
    "too-large": BadSession(("too_large",), {"metadata": "x" * (MAX_METADATA_BYTES + 1)}),
    "unservable": BadSession(("malformed",), {"language": "xx"}),
    "missing-session": BadSession(("missing",), {"session": None}, published=False),
    "bad-lane": BadSession(("malformed",), {"lane": "no spaces"}, published=False),
    "known-id": BadSession(("encoding",), {"encoding": "mp3"}, published=False),
    "repeated": BadSession(("duplicate", "ended"), {}, published=False),
}

OF_A_SESSION: Final = ("known-id", "repeated")
"""Kinds with the id of a session of the plan, which they must not affect."""


class BadAudio(NamedTuple):
    """One kind of bad audio entry."""

    reason: str
    fields: Fields
    beside_audio: bool = False
    """Whether the bad fields stand in an entry with good audio, which is used."""

    @property
    def code(self) -> str:
        """Code of the `session.error` that reports it."""
        return f"audio_{self.reason}"


BAD_AUDIO: Final[Mapping[BadAudioKind, BadAudio]] = {
    "empty": BadAudio("empty", {"note": "no audio"}),
    "too-large": BadAudio("too_large", {"audio": bytes(MAX_AUDIO_BYTES + 1)}),
    "bad-config": BadAudio("malformed", {"config": "{"}, beside_audio=True),
    "bad-mark": BadAudio("malformed", {"mark": "[1]"}, beside_audio=True),
    "bad-seq": BadAudio("malformed", {"seq": "first"}, beside_audio=True),
}


def published_counts(entries: int) -> int:
    """Return how many errors report a number of bad entries of one kind.

    The first is reported, then each count that has doubled, and at the end the count of all.
    """
    doublings = entries.bit_length()
    return doublings + (entries > 0 and entries != 1 << (doublings - 1))
