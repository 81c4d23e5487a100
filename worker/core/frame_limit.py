"""Maximum size of messages to the provider, learned from those it rejects."""

MIN_FRAME_BYTES = 256
"""Minimum value of the limit. It is a multiple of every sample size."""

_ALIGNMENT = 8


class FrameLimit:
    """Limits the audio in one message. All sessions of a worker share it.

    The provider does not publish its limit, and no close code gives it.
    """

    def __init__(self) -> None:
        self.max_bytes = 2**62
        """Maximum size of a message, whole samples of any encoding."""

    def refused(self, size: int) -> bool:
        """Record a rejected message; `size` is the largest message sent on its socket.

        Returns whether smaller messages can be sent.
        """
        if self.max_bytes < size:
            return True  # another session has learned it
        smaller = max(MIN_FRAME_BYTES, size // 2 - size // 2 % _ALIGNMENT)
        if smaller >= size:
            return False
        self.max_bytes = smaller
        return True
