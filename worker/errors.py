"""Every error turnbus raises on purpose.

Errors of the schemas are `schemas.EntryError` (a ValueError), raised before a session is owned.
"""

from collections.abc import Sequence
from typing import ClassVar


class TurnbusError(Exception):
    """Base of all errors raised on purpose. The message includes advice."""


class SettingsError(TurnbusError):
    """Settings that cannot work."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.problems = tuple(faults)
        super().__init__("\n".join(self.problems))


class MissingExtraError(TurnbusError):
    """An embedded part is not installed; the text names the package to install."""


class BusUnavailableError(TurnbusError):
    """Redis cannot be reached, or rejects what the worker requires."""


class SoundError(TurnbusError):
    """A sound file cannot be read or decoded; the message names it."""


class UnknownSoundError(SoundError):
    """A file of unknown format. It may be raw audio."""


class OutputFailedError(TurnbusError):
    """Standard output cannot be written: its reader is gone, or its disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.reader_is_gone = isinstance(error, BrokenPipeError)


class FencedError(TurnbusError):
    """A fenced write was rejected: another worker owns the session."""


class SttError(TurnbusError):
    """The STT provider rejected a request or failed.

    `status` is the HTTP-like status or close code, 0 if there is none. `code` is the provider's
    error code. `request_id` identifies the request to the provider's support. `advice` is for the
    operator, empty if it follows from the class. The error never contains a key or a URL.
    """

    error_class: ClassVar[str]
    """Name of the class in metrics and spans."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        advice: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.advice = advice


class SttPermanentError(SttError):
    """The request itself is invalid; a retry would be rejected again."""

    error_class = "permanent"


class SttCredentialsError(SttError):
    """The provider rejected the key or the credit (401, 402, 403), or a proxy the worker."""

    error_class = "credentials"


class SttBusyError(SttError):
    """The plan's open-socket limit is reached (429)."""

    error_class = "busy"


class SttTransientError(SttError):
    """A failure that a new connection may resolve: lost sockets, 5xx, timeouts."""

    error_class = "transient"


class SttTooBigError(SttTransientError):
    """The provider rejected a message for its size; smaller ones may pass."""


class SttUnknownCommandError(SttTransientError):
    """The provider does not know the command that ends a turn, and has closed the socket."""


class SttProtocolError(SttTransientError):
    """The provider broke the WebSocket protocol."""


class SttShortageError(SttTransientError):
    """The machine has no descriptor, memory, local port or thread left for a socket."""

    error_class = "shortage"


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group and its nested groups, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]
