"""`turnbus push`: a producer, as small as one can be and still lose nothing."""

import os
import signal
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Meta
from redis.asyncio import Redis

from schemas import Encoding, EntryFault, Keys, SessionEntry, decode_session
from schemas.audio import Lane, SessionId
from schemas.faults import allowed
from worker import telemetry
from worker.commands import (
    Subparsers,
    add_command,
    add_config,
    argument_type,
    choice,
    read_settings,
    run_async,
)
from worker.commands.bus import open_bus
from worker.errors import LocalPartMissing, SettingsError, TurnbusError
from worker.extras import how_to_install
from worker.local.producer import Producer
from worker.plurals import counted
from worker.settings import Settings
from worker.telemetry.spans import Announcement

_STDIN = "-"
_END_TIMEOUT_S = 2.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "push",
        run,
        about="Announce a session, append a sound file or raw audio to it, and end it.\n"
        "It is announced when the first audio is there; without any, exit code 1.\n"
        "Ctrl-C and SIGTERM end it early; Redis going away meanwhile is waited out.",
        examples="""
turnbus push call.wav --session call-1
turnbus push call.flac --session call-2 --encoding pcm_mulaw --sample-rate 8000 --speed 2
arecord -f S16_LE -r 16000 -t raw | turnbus push - --session mic""",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a WAV, FLAC or other sound file; - for raw "
        "audio on standard input, already in the encoding and rate given",
    )
    parser.add_argument(
        "--session",
        required=True,
        metavar="ID",
        type=argument_type(SessionId, "1 to 128 of A-Z a-z 0-9 . _ : -"),
        help="one id per call",
    )
    parser.add_argument(
        "--encoding",
        type=argument_type(Encoding, allowed(Encoding)),
        choices=list(Encoding),
        default=Encoding.PCM_S16LE,
        help="what goes over the wire; files are converted (default %(default)s)",
    )
    parser.add_argument(
        "--sample-rate",
        metavar="HZ",
        type=argument_type(Annotated[int, Meta(ge=8_000, le=192_000)], "8000 to 192000"),
        default=16_000,
        help="files are resampled to it (default %(default)s)",
    )
    parser.add_argument(
        "--chunk-ms",
        metavar="MS",
        # The longest chunk of the widest format stays below the bus's 256 KiB.
        type=argument_type(Annotated[int, Meta(ge=5, le=300)], "5 to 300"),
        default=100,
        help="milliseconds of audio in an entry (default %(default)s)",
    )
    parser.add_argument(
        "--speed",
        metavar="X",
        type=argument_type(Annotated[float, Meta(ge=0, le=1_000)], "a number, 0 or more"),
        default=1.0,
        help="times real time; 0: as fast as it goes (default %(default)s)",
    )
    parser.add_argument(
        "--lane",
        type=argument_type(Lane, "1 to 32 of A-Z a-z 0-9 _ -"),
        default="0",
        help="lane of the session (default %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=choice,
        choices=["lane", "session"],
        default="lane",
        help="session: its events also go to a stream of its own (default %(default)s)",
    )
    parser.add_argument(
        "--metadata",
        metavar="JSON",
        type=_metadata,
        default={},
        help="an object, echoed in session.started",
    )
    parser.add_argument("--json", action="store_true", help="report in JSON")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """Push."""
    settings = read_settings(arguments)
    entry = SessionEntry(
        session=arguments.session,
        encoding=arguments.encoding,
        sample_rate=arguments.sample_rate,
        lane=arguments.lane,
        out=arguments.out,
        metadata=arguments.metadata,
    )
    size = entry.sample_rate * arguments.chunk_ms // 1000 * entry.encoding.width
    if arguments.file == _STDIN:
        chunks = _stdin_chunks(size)
    else:
        chunks = _chunks(_load(Path(arguments.file), entry), size)
    seconds = arguments.chunk_ms / 1000 / arguments.speed if arguments.speed else 0.0
    telemetry.configure(f"push-{entry.session}")
    try:
        return run_async(
            partial(_push, settings, entry, chunks, seconds=seconds, as_json=arguments.json)
        )
    finally:
        telemetry.shut_down()


async def _push(
    settings: Settings,
    entry: SessionEntry,
    chunks: AsyncIterator[bytes],
    *,
    seconds: float,
    as_json: bool,
) -> int:
    shows_progress = sys.stderr.isatty() and not as_json
    stopped: int | None = None
    announced: tuple[Producer, str] | None = None
    async with open_bus(settings) as redis:

        async def obey(tasks: TaskGroup) -> None:
            nonlocal stopped
            stopped = await anext(aiter(signals))
            tasks.cancel_scope.cancel()

        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(obey, tasks)
                first = await anext(chunks, None)
                if first is None:
                    raise TurnbusError("no audio came; no session was announced")
                announced = await _announce(redis, Keys(settings.prefix), entry)
                producer, _ = announced
                await _play(producer, first, chunks, seconds, shows_progress=shows_progress)
                await producer.end()
                tasks.cancel_scope.cancel()
            if stopped is not None and announced is not None:
                await _end_early(announced[0])
    if announced is not None:
        _report(entry.session, *announced, shows_progress=shows_progress, as_json=as_json)
    return 0 if stopped is None else 128 + stopped


async def _announce(redis: Redis, keys: Keys, entry: SessionEntry) -> tuple[Producer, str]:
    """Announce the session; return its producer and the id of its entry."""
    announcement = Announcement(entry.session)
    producer = Producer(redis, keys, msgspec.structs.replace(entry, **announcement.fields))
    with anyio.CancelScope(shield=True):  # one that is told to stop now has to know what to end
        run = await producer.announce()
    announcement.sent(run)
    return producer, run


def _report(
    session: str, producer: Producer, run: str, *, shows_progress: bool, as_json: bool
) -> None:
    """Say what was appended."""
    if shows_progress:
        print(file=sys.stderr)
    if as_json:
        report = {
            "session": session,
            "run": run,
            "chunks": producer.chunks,
            "audio_ms": round(producer.seconds * 1000),
        }
        print(msgspec.json.encode(report).decode())
    else:
        chunk_count = counted(producer.chunks, "chunk")
        print(f"{session}: {producer.seconds:.1f} s in {chunk_count}")


async def _play(
    producer: Producer,
    first: bytes,
    others: AsyncIterator[bytes],
    seconds: float,
    *,
    shows_progress: bool,
) -> None:
    """Append each chunk when it is due."""
    due = anyio.current_time()
    chunk: bytes | None = first
    while chunk is not None:
        await anyio.sleep_until(due)
        await producer.append(chunk)
        due += seconds
        if shows_progress:
            print(f"\r{producer.seconds:.1f} s", end="", file=sys.stderr, flush=True)
        chunk = await anext(others, None)


async def _end_early(producer: Producer) -> None:
    """End the session of a producer that was told to stop, or say how to."""
    with anyio.move_on_after(_END_TIMEOUT_S):
        await producer.end()
        return
    print(
        "turnbus: Redis does not answer: the session is still open, until it has been idle for "
        f"long. End it with: XADD {producer.stream} * end 1",
        file=sys.stderr,
    )


async def _chunks(audio: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(audio), size):
        yield audio[at : at + size]


async def _stdin_chunks(size: int) -> AsyncIterator[bytes]:
    held = b""
    while piece := await _read_stdin(size - len(held)):
        held += piece
        if len(held) == size:
            yield held
            held = b""
    if held:
        yield held


async def _read_stdin(at_most: int) -> bytes:
    # Waited for here rather than in a thread: a thread that still reads would hold up Ctrl-C.
    stdin = sys.stdin.fileno()
    while True:
        with suppress(PermissionError):  # files cannot be waited for, and need not be
            await anyio.wait_readable(stdin)
        try:
            return os.read(stdin, at_most)
        except BlockingIOError:  # another process that shares it has read what was there
            continue
        except OSError as error:
            raise TurnbusError(f"standard input: {error.strerror}") from error


def _load(path: Path, entry: SessionEntry) -> bytes:
    """Read a sound file and return its bytes in the session's format."""
    try:
        from worker.local.engines.base import AudioFormat
        from worker.local.sound import read
    except ModuleNotFoundError as error:
        raise LocalPartMissing(
            f"reading sound files needs {error.name}; {how_to_install('local')}, "
            "or pipe raw audio into: turnbus push -"
        ) from error
    try:
        return read(path).encode(AudioFormat(entry.encoding, entry.sample_rate))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise SettingsError([str(error)]) from error


def _metadata(text: str) -> dict[str, Any]:
    """Read metadata as a worker reads it from the bus."""
    fields = {b"session": b"s", b"encoding": b"pcm_s16le", b"sample_rate": b"8000"}
    try:
        return decode_session(fields | {b"metadata": text.encode()}).metadata
    except UnicodeEncodeError:
        raise ArgumentTypeError("must be UTF-8 text") from None
    except EntryFault as fault:
        raise ArgumentTypeError(fault.fault) from None
