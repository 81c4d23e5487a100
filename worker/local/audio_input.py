"""Audio input for a session: a sound file or raw audio, streamed from a file or a pipe."""

import errno
import math
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self, TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from worker.errors import MissingExtraError, SoundError
from worker.local.emulator.engines.base import AudioFormat
from worker.local.sound_headers import is_file
from worker.text import install_hint, pluralize

if TYPE_CHECKING:
    from worker.local.sound import SoundSource

T = TypeVar("T")

STDIN: Final = "-"
_LOOK_BYTES: Final = 8_192
_RAW_SUFFIXES: Final = (".raw", ".pcm")


class AudioInput:
    """One open file, pipe or standard input.

    Input that begins like a sound file is decoded, regardless of its name. Other input is raw
    audio if its suffix is that of raw audio, or if it is standard input. The format of a file is
    detected when it is opened, that of a pipe when it is read.
    """

    def __init__(self, named: str) -> None:
        """Open the input; a pipe waits for its writer. Raises MissingExtraError, SoundError."""
        self.name = "standard input" if named == STDIN else named
        self.notice: str | None = None
        """Warning for the user about the audio, set after it was read."""
        self._may_be_raw = named == STDIN or named.lower().endswith(_RAW_SUFFIXES)
        if not self._may_be_raw:
            _decoder()
        self._head = b""
        self._sound: SoundSource | None = None
        try:
            self._file = _open(named)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._look()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._sound is not None:
            self._sound.close()
        self._file.close()

    @property
    def seconds(self) -> float | None:
        """Duration according to the sound file; None if unknown."""
        return None if self._sound is None else self._sound.seconds

    async def pieces(self, audio: AudioFormat, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the audio in this format, about `size` bytes at a time.

        Raises MissingExtraError, and SoundError if the audio cannot be read.
        """
        if self._sound is None and (not self._may_be_raw or await self._is_sound_file()):
            decoder = _decoder()
            self._sound = await _in_thread(lambda: decoder(_FromPipe(self), self.name))
        if self._sound is None:
            while piece := await self.read(size):
                yield piece
            return
        decoded = self._sound.encode(audio)
        while piece := await _in_thread(partial(_take, decoded, size)):
            yield piece
        if self._sound.damaged:
            packets = pluralize(self._sound.damaged, "packet")
            self.notice = f"{self.name} is damaged: {packets} could not be decoded"

    async def read(self, at_most: int) -> bytes:
        """Read the next bytes; empty at the end."""
        if self._head:
            piece, self._head = self._head[:at_most], self._head[at_most:]
            return piece
        # Wait here and not in a thread: a thread that is still reading would delay Ctrl-C.
        if self.is_pipe:
            with suppress(
                PermissionError
            ):  # some devices do not support waiting, and do not need it
                await anyio.wait_readable(self._file.fileno())
        try:
            return os.read(self._file.fileno(), at_most)
        except OSError as error:
            raise self._unreadable(error) from error

    def _look(self) -> None:
        """Detect whether the input is a pipe; detect the format of a file."""
        number = self._file.fileno()
        try:
            self.is_pipe = not stat.S_ISREG(os.fstat(number).st_mode) or self._file.tell() != 0
            head = b"" if self.is_pipe else os.pread(number, _LOOK_BYTES, 0)
        except OSError as error:
            raise self._unreadable(error) from error
        if not self.is_pipe and (not self._may_be_raw or is_file(head)):
            self._sound = _decoder()(self._file, self.name)

    async def _is_sound_file(self) -> bool:
        """Detect the format of a pipe from its first bytes, and keep them."""
        if not self.is_pipe:
            return False
        head = b""
        while (found := is_file(head)) is None and (more := await self.read(_LOOK_BYTES)):
            head += more
        self._head = head
        return bool(found)

    def _unreadable(self, error: OSError) -> SoundError:
        return SoundError(f"{self.name}: cannot be read: {error.strerror}")


async def in_chunks(pieces: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """Split the input into chunks of `size` bytes; the last one may be shorter."""
    held = b""
    async for piece in pieces:
        held = held + piece if held else piece
        whole = len(held) - len(held) % size
        for at in range(0, whole, size):
            yield held[at : at + size]
        held = held[whole:]
    if held:
        yield held


class _FromPipe:
    """File interface of a pipe for the decoding thread: the event loop waits for its bytes."""

    def __init__(self, source: AudioInput) -> None:
        self._source = source

    def read(self, size: int, /) -> bytes:
        data = from_thread.run(self._read, size)
        if data is None:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        return data

    async def _read(self, size: int) -> bytes | None:
        """Read; return None when cancelled, which cannot be raised through FFmpeg."""
        # anyio does not cancel a task that a thread starts after its scope was cancelled.
        if anyio.current_effective_deadline() == -math.inf:
            return None
        try:
            return await self._source.read(size)
        except anyio.get_cancelled_exc_class():
            return None


def _open(named: str) -> BinaryIO:
    if named == STDIN:
        return open(0, "rb", buffering=0, closefd=False)
    return Path(named).open("rb", buffering=0)


def _decoder() -> type["SoundSource"]:
    """Return the decoder for sound files. Raises MissingExtraError if it is not installed."""
    try:
        from worker.local.sound import SoundSource
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"reading sound files needs {error.name}; {install_hint('local')}, "
            "or pipe raw audio into: turnbus push -"
        ) from error
    return SoundSource


def _take(pieces: Iterator[bytes], size: int) -> bytes:
    """Decode at least `size` bytes; empty at the end."""
    taken = b""
    while len(taken) < size and (piece := next(pieces, None)) is not None:
        taken += piece
    return taken


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread; cancellation ends it when it next reads through the event loop."""
    try:
        return await to_thread.run_sync(work)
    except SoundError:
        await checkpoint_if_cancelled()  # the error may be due to a cancelled read
        raise
