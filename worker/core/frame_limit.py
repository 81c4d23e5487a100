"""The size of messages to the provider, learned from those it refuses."""

MIN_FRAME_BYTES = 256
"""Minimum size of a message that can be asked for. A multiple of the size of every sample."""

_ALIGNMENT = 8


class FrameLimit:
    """Limits the audio in one message. Shared by all sessions of a worker: they have one provider.

    The provider does not publish its limit, and no close code gives it.
    """

    def __init__(self) -> None:
        self.max_bytes = 2**62
        """Maximum size of a message, whole samples of any encoding."""

    def refused(self, size: int) -> bool:
        """Note that the provider refused a message, the largest on its socket having had `size`.

        Return whether smaller ones can be sent.
        """
        if self.max_bytes < size:
            return True  # another session has learned it
        smaller = max(MIN_FRAME_BYTES, size // 2 - size // 2 % _ALIGNMENT)
        if smaller >= size:
            return False
        self.max_bytes = smaller
        return True
