"""Every error turnbus raises on purpose.

TurnbusError
├── SettingsError        settings that cannot work; carries one line per fault
├── LocalPartMissing     an embedded part (Redis binary, weights) is not installed
├── TooFewFiles          this process may open too few files to run at all
├── BusUnavailable       Redis cannot be reached or is not fit to use
├── SoundError           a sound file that cannot be read or decoded
│   └── UnknownSound     it begins like no file that is known: it may be raw audio
├── NotThere             a session, worker or entry that a command was asked about is not there
├── RequeueRefused       a dead entry that would only be refused again
├── OutputFailed         standard output takes no more
├── CommitRefused        a fenced write was refused: another worker owns the session
└── SttError             the STT service refused or failed
    ├── SttPermanent     the request itself is wrong; retrying cannot help
    ├── SttCredentials   key or credit refused; the session waits
    ├── SttBusy          the plan's concurrency is used up; wait
    └── SttTransient     anything a new connection may cure
        ├── SttTooBig         the provider refused a message for its size
        ├── SttProtocolFault  the provider broke the WebSocket protocol
        └── SttShortage       this machine lacks what a socket needs; another worker may not

Schema faults are `schemas.EntryFault` (a ValueError), raised before anything is owned.
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


class LocalPartMissing(TurnbusError):  # noqa: N818 - reads as what happened
    """An embedded part is not installed; the text names the package to install."""


class TooFewFiles(TurnbusError):  # noqa: N818
    """The limit of open files leaves a worker no room to run, let alone sessions."""


class BusUnavailable(TurnbusError):  # noqa: N818
    """Redis cannot be reached, or refuses what the worker needs."""


class SoundError(TurnbusError):
    """A sound file cannot be read, or holds nothing that can be decoded; the text names it."""


class UnknownSound(SoundError):  # noqa: N818
    """A file that begins like no kind of file that is known. It may be raw audio."""


class NotThere(TurnbusError):  # noqa: N818
    """What a command was asked to act upon is not there, or not any more."""


class RequeueRefused(TurnbusError):  # noqa: N818
    """A dead entry cannot be announced again, or would only be refused again."""


class OutputFailed(TurnbusError):  # noqa: N818
    """Standard output takes no more: its reader is gone, or its disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.reader_is_gone = isinstance(error, BrokenPipeError)


class CommitRefused(TurnbusError):  # noqa: N818
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


class SttPermanent(SttError):  # noqa: N818
    """The request itself is wrong; the same session would be refused again."""

    fault_class = "permanent"


class SttCredentials(SttError):  # noqa: N818
    """The key or the credit was refused (401, 402, 403), or this worker by its proxy."""

    fault_class = "credentials"


class SttBusy(SttError):  # noqa: N818
    """The plan's open-socket limit is reached (429)."""

    fault_class = "busy"


class SttTransient(SttError):  # noqa: N818
    """A failure that a new connection may cure: cuts, 5xx, timeouts."""

    fault_class = "transient"


class SttTooBig(SttTransient):
    """The provider refused a message for its size; smaller ones may pass."""


class SttProtocolFault(SttTransient):
    """The provider broke the WebSocket protocol."""


class SttShortage(SttTransient):
    """No descriptor, memory, local port or thread is left on this machine for a socket."""

    fault_class = "shortage"


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, and of the groups in it; of any other error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]
