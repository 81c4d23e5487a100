"""Every error turnbus raises on purpose.

TurnbusError
├── SettingsError             settings that cannot work; carries one line per error
├── MissingExtraError         an embedded part (Redis binary, weights) is not installed
├── TooFewFilesError          the process may open too few files to run at all
├── BusUnavailableError       Redis cannot be reached or is not fit to use
├── SoundError                a sound file cannot be read or decoded
│   └── UnknownSoundError     it begins like no known file: it may be raw audio
├── NotFoundError             the session, worker or entry that a command names does not exist
├── RequeueError              a dead letter that would be rejected again
├── OutputFailedError         standard output takes no more
├── FencedError               a fenced write was rejected: another worker owns the session
└── SttError                  the provider rejected a request, or failed
    ├── SttPermanentError     the request itself is wrong; a retry cannot help
    ├── SttCredentialsError   key or credit rejected; the session waits
    ├── SttBusyError          the plan's concurrency is used up; the session waits
    └── SttTransientError     anything a new connection may cure
        ├── SttTooBigError    the provider rejected a message for its size
        ├── SttProtocolError  the provider broke the WebSocket protocol
        └── SttShortageError  this machine lacks what a socket needs; another worker may not

Errors of the schemas are `schemas.EntryError` (a ValueError), raised before a session is owned.
"""

from collections.abc import Sequence
from typing import ClassVar


class TurnbusError(Exception):
    """Base of all errors raised on purpose. The text says what to do."""


class SettingsError(TurnbusError):
    """Settings that cannot work."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class MissingExtraError(TurnbusError):
    """An embedded part is not installed; the text names the package to install."""


class TooFewFilesError(TurnbusError):
    """The limit of open files leaves a worker no room to run, let alone sessions."""


class BusUnavailableError(TurnbusError):
    """Redis cannot be reached, or refuses what the worker needs."""


class SoundError(TurnbusError):
    """A sound file cannot be read, or holds nothing that can be decoded; the text names it."""


class UnknownSoundError(SoundError):
    """A file that begins like no kind of file that is known. It may be raw audio."""


class NotFoundError(TurnbusError):
    """What a command was asked to act upon is not there, or not any more."""


class RequeueError(TurnbusError):
    """A dead entry cannot be announced again, or would only be refused again."""


class OutputFailedError(TurnbusError):
    """Standard output takes no more: its reader is gone, or its disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.reader_is_gone = isinstance(error, BrokenPipeError)


class FencedError(TurnbusError):
    """A fenced write was refused: the session belongs to another worker now."""


class SttError(TurnbusError):
    """The STT service refused or failed.

    `status` is the HTTP-like status or close code, 0 where there was none; `code` the service's
    own error code; `request_id` what its support asks for. `advice` is what the operator should do,
    empty where that follows from the class. Never holds a key or a URL.
    """

    fault_class: ClassVar[str]
    """The class in one word, for metrics and spans."""

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
    """The request itself is wrong; the same session would be refused again."""

    fault_class = "permanent"


class SttCredentialsError(SttError):
    """The key or the credit was refused (401, 402, 403), or this worker by its proxy."""

    fault_class = "credentials"


class SttBusyError(SttError):
    """The plan's open-socket limit is reached (429)."""

    fault_class = "busy"


class SttTransientError(SttError):
    """A failure that a new connection may cure: cuts, 5xx, timeouts."""

    fault_class = "transient"


class SttTooBigError(SttTransientError):
    """The provider refused a message for its size; smaller ones may pass."""


class SttProtocolError(SttTransientError):
    """The provider broke the WebSocket protocol."""


class SttShortageError(SttTransientError):
    """No descriptor, memory, local port or thread is left on this machine for a socket."""

    fault_class = "shortage"


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, and of the groups in it; of any other error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]
