"""Interleaved samples to one track for each channel."""

from collections.abc import Sequence

from schemas import Encoding
from worker.ingest.records import Audio


class Channels:
    """Splits audio into whole samples of each channel, wherever messages were cut.

    Two channels are de-interleaved if their samples have 16 bits.
    """

    def __init__(self, encoding: Encoding, count: int) -> None:
        self._frame_bytes = encoding.width * count
        self._count = count
        self._rest = b""

    def split(self, audio: bytes) -> Sequence[Audio]:
        """Return what is complete, a record for each track; keep an incomplete frame."""
        if self._rest:
            audio = self._rest + audio
        whole = len(audio) - len(audio) % self._frame_bytes
        self._rest = audio[whole:]
        if not whole:
            return ()
        if self._count == 1:
            return (Audio(audio[:whole]),)
        samples = memoryview(audio)[:whole].cast("h")
        return tuple(
            Audio(samples[track :: self._count].tobytes(), track) for track in range(self._count)
        )
