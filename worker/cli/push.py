"""`turnbus push`: a minimal producer that loses no audio."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Meta
from redis.asyncio import Redis

from schemas import Encoding, EntryError, Keys, SessionEntry, decode_session
from schemas.audio import Lane, LanguageTag, ModelName, NewSessionId, ProviderName
from worker import telemetry
from worker.cli.bus import open_redis
from worker.cli.command import Argument, Command, Config, Option, print_json, run_async
from worker.errors import SettingsError, SoundError, TurnbusError, UnknownSoundError
from worker.local.audio_input import AudioInput, in_chunks
from worker.local.emulator.engines.base import AudioFormat
from worker.producer import Producer
from worker.settings import Settings, load
from worker.telemetry.traces import ProducerSpan
from worker.text import pluralize

_END_TIMEOUT_S = 2.0


def _metadata(text: str) -> dict[str, Any]:
    """Decode metadata as a worker does."""
    fields = {b"session": b"s", b"encoding": b"pcm_s16le", b"sample_rate": b"8000"}
    try:
        return decode_session(fields | {b"metadata": text.encode()}).metadata
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8 text") from None
    except EntryError as error:
        raise ValueError(error.message) from None


class Push(Command):
    """Announce a session, append a sound file or raw audio to it, and end it.

    The session is announced with the first audio; without any, the exit code is 1.
    Ctrl-C and SIGTERM end it early. Appends are retried during Redis outages.

    examples:
      turnbus push call.wav --session call-1
      turnbus push call.m4a --session call-2 --encoding pcm_mulaw --sample-rate 8000 --speed 2
      turnbus push call.raw --session call-3 --encoding pcm_s16le --sample-rate 16000
      turnbus push call.flac --session call-4 --provider flux --language de
      arecord -f S16_LE -r 16000 -t raw | turnbus push - --session mic
    """

    file: Annotated[
        str,
        Argument(
            "a WAV, FLAC, MP3, M4A or other sound file, or a video for its sound; - for standard "
            "input. Raw audio, already in the encoding and rate given: - or a name that ends in "
            ".raw or .pcm",
            "FILE",
            parse=str,
        ),
    ]
    session: Annotated[NewSessionId, Option("one id per call", "ID")]
    encoding: Annotated[Encoding, Option("encoding of the entries; files are converted")] = (
        Encoding.PCM_S16LE
    )
    sample_rate: Annotated[
        int, Meta(ge=8_000, le=192_000), Option("files are resampled to it", "HZ")
    ] = 16_000
    # The longest chunk of the widest format stays below the bus's 256 KiB.
    chunk_ms: Annotated[
        int, Meta(ge=5, le=300), Option("milliseconds of audio in an entry", "MS")
    ] = 100
    speed: Annotated[
        float, Meta(ge=0, le=1_000), Option("times real time; 0: as fast as possible", "X")
    ] = 1.0
    lane: Annotated[Lane, Option("lane of the session")] = "0"
    out: Annotated[
        Literal["lane", "session"],
        Option("session: also append the events to a stream of the session"),
    ] = "lane"
    provider: Annotated[
        ProviderName | None, Option("the only provider of the session (default: the workers')")
    ] = None
    model: Annotated[
        ModelName | None, Option("model of the provider (default: the workers')", "NAME")
    ] = None
    language: Annotated[
        LanguageTag | None, Option("only providers that speak it may serve the session", "TAG")
    ] = None
    metadata: Annotated[
        dict[str, Any] | None,
        Option("an object; session.started echoes it", "JSON", parse=_metadata),
    ] = None
    json: Annotated[bool, Option("report in JSON")] = False
    config: Config = None

    def run(self) -> int:
        """Push the audio."""
        settings = load(os.environ, self.config)
        entry = SessionEntry(
            session=self.session,
            encoding=self.encoding,
            sample_rate=self.sample_rate,
            lane=self.lane,
            out=self.out,
            provider=self.provider,
            model=self.model,
            language=self.language,
            metadata=self.metadata or {},
        )
        with _open(self.file, entry) as source:
            telemetry.configure(f"push-{entry.session}")
            try:
                return run_async(partial(self._push, settings, entry, source))
            finally:
                telemetry.shut_down()

    async def _push(self, settings: Settings, entry: SessionEntry, source: AudioInput) -> int:
        size = entry.sample_rate * self.chunk_ms // 1000 * entry.encoding.width
        pieces = source.pieces(AudioFormat(entry.encoding, entry.sample_rate), size)
        async with aclosing(pieces), aclosing(in_chunks(pieces, size)) as chunks:
            code = await self._push_chunks(settings, entry, chunks)
        if source.notice:
            print(f"turnbus: {source.notice}", file=sys.stderr)
        return code

    async def _push_chunks(
        self, settings: Settings, entry: SessionEntry, chunks: AsyncIterator[bytes]
    ) -> int:
        stopped: int | None = None
        announced: tuple[Producer, str] | None = None
        async with open_redis(settings) as redis:

            async def stop_on_signal(tasks: TaskGroup) -> None:
                nonlocal stopped
                stopped = await anext(aiter(signals))
                tasks.cancel_scope.cancel()

            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stop_on_signal, tasks)
                    first = await _first(chunks, entry)
                    announced = await _announce(redis, Keys(settings.prefix), entry)
                    producer, _ = announced
                    try:
                        await self._play(producer, first, chunks)
                    except SoundError:
                        await producer.end()
                        raise
                    await producer.end()
                    tasks.cancel_scope.cancel()
                if stopped is not None and announced is not None:
                    await _end_early(announced[0])
        if announced is not None:
            self._report(*announced)
        return 0 if stopped is None else 128 + stopped

    async def _play(self, producer: Producer, first: bytes, others: AsyncIterator[bytes]) -> None:
        """Append each chunk when it is due."""
        interval_s = self.chunk_ms / 1000 / self.speed if self.speed else 0.0
        due = anyio.current_time()
        chunk: bytes | None = first
        while chunk is not None:
            await anyio.sleep_until(due)
            await producer.append(chunk)
            due += interval_s
            if self._shows_progress:
                print(f"\r{producer.seconds:.1f} s", end="", file=sys.stderr, flush=True)
            chunk = await anext(others, None)

    @property
    def _shows_progress(self) -> bool:
        return sys.stderr.isatty() and not self.json

    def _report(self, producer: Producer, run: str) -> None:
        """Print what was appended."""
        if self._shows_progress:
            print(file=sys.stderr)
        if self.json:
            about = {"session": self.session, "run": run}
            audio_ms = round(producer.seconds * 1000)
            print_json({**about, "chunks": producer.chunks, "audio_ms": audio_ms})
        else:
            chunk_count = pluralize(producer.chunks, "chunk")
            print(f"{self.session}: {producer.seconds:.1f} s in {chunk_count}")


async def _announce(redis: Redis, keys: Keys, entry: SessionEntry) -> tuple[Producer, str]:
    """Announce the session; return its producer and the id of its entry."""
    announcement = ProducerSpan(entry.session)
    producer = Producer(redis, keys, msgspec.structs.replace(entry, **announcement.fields))
    with anyio.CancelScope(shield=True):  # a stopped producer must know which session to end
        run = await producer.announce()
    announcement.sent(run)
    return producer, run


async def _end_early(producer: Producer) -> None:
    """End the session of a stopped producer, or print how to end it."""
    with anyio.move_on_after(_END_TIMEOUT_S):
        await producer.end()
        return
    print(
        "turnbus: Redis does not answer: the session stays open until its idle timeout. "
        f"End it with: XADD {producer.stream} * end 1",
        file=sys.stderr,
    )


def _open(file: str, entry: SessionEntry) -> AudioInput:
    try:
        return AudioInput(file)
    except SoundError as error:
        raise _unplayable(error, entry) from error


async def _first(chunks: AsyncIterator[bytes], entry: SessionEntry) -> bytes:
    """Return the first chunk. Raises SettingsError if the file cannot be played."""
    try:
        chunk = await anext(chunks, None)
    except SoundError as error:
        raise _unplayable(error, entry) from error
    if chunk is None:
        raise TurnbusError("received no audio; no session was announced")
    return chunk


def _unplayable(error: SoundError, entry: SessionEntry) -> SettingsError:
    if not isinstance(error, UnknownSoundError):
        return SettingsError([str(error)])
    raw = f"raw audio, {entry.encoding} at {entry.sample_rate} Hz"
    return SettingsError([f"{error}; if it is {raw}: turnbus push - < FILE"])
