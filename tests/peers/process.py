"""Process of one client, and its request protocol."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self, TypeVar, cast

import anyio
import anyio.abc
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.buffered import BufferedByteReceiveStream

from worker.errors import TurnbusError

_MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024  # the transcripts of thousands of sessions
_TAIL_LINES: Final = 8
_TIMEOUT_S: Final = 90.0  # to start, to connect, to receive the last words


T = TypeVar("T")


class PeerFailed(TurnbusError):  # noqa: N818 - becomes a row of the report
    """A client's process failed."""


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step is complete: `ready` to receive requests, `open` sessions, or a begun `load`."""

    done: str


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Number of chunks that its sessions received so far."""

    chunks: int


class ClientSession(msgspec.Struct, frozen=True):
    """One session of a client: number of its speech chunks, and the texts of its turns."""

    spoken: int
    turns: tuple[str, ...]


class Outcome(msgspec.Struct, frozen=True):
    """Final results of a client."""

    sessions: tuple[ClientSession, ...]
    late: float
    """Share of its slots that began more than a slot too late."""
    failures: tuple[str, ...] = ()
    """Errors of the first sessions that failed."""
    missing: int = 0
    """Number of sessions that did not finish."""


class PeerProcess:
    """Process of a client; `start` creates one."""

    def __init__(self, process: anyio.abc.Process, log: Path) -> None:
        self.pid: Final = process.pid
        self._stdin = cast("ByteSendStream", process.stdin)  # both are pipes: `start` asks for them
        self._stdout = BufferedByteReceiveStream(cast("ByteReceiveStream", process.stdout))
        self._log = log

    @classmethod
    @asynccontextmanager
    async def start(cls, python: Path, program: Path, spec: Path, log: Path) -> AsyncIterator[Self]:
        """Run a program of `clients` until the block ends; then it is killed.

        It ends when this process ends, because its standard input closes.
        """
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            process = await anyio.open_process(
                [str(python), "-E", "-s", str(program), str(spec)],
                stderr=output,
                start_new_session=True,  # Ctrl-C must reach the parent process only
            )
        finally:
            os.close(output)
        try:
            yield cls(process, log)
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.aclose()

    async def ask(self, what: str, kind: type[T]) -> T:
        """Send a request and return the answer. Raises PeerFailed without one."""
        try:
            await self._stdin.send(what.encode() + b"\n")
        except (anyio.BrokenResourceError, OSError):
            raise PeerFailed(f"it stopped by itself{self._last_lines}") from None
        return await self.answer(kind)

    async def answer(self, kind: type[T]) -> T:
        """Return the next answer. Raises PeerFailed without one."""
        try:
            with anyio.fail_after(_TIMEOUT_S):
                line = await self._stdout.receive_until(b"\n", _MAX_ANSWER_BYTES)
        except TimeoutError:
            raise PeerFailed(f"no answer within {_TIMEOUT_S:g} s{self._last_lines}") from None
        except (anyio.EndOfStream, anyio.IncompleteRead):
            raise PeerFailed(f"it stopped by itself{self._last_lines}") from None
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError:
            raise PeerFailed(f"it answered {line[:200]!r}") from None

    @property
    def _last_lines(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()[-_TAIL_LINES:]
        return "; it last wrote: " + " | ".join(lines) if lines else ""
