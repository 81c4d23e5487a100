"""`turnbus watch`: a consumer that prints turns as they are published."""

import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from redis.asyncio import Redis

from schemas import Keys
from schemas.audio import Fields, Lane, SessionId
from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnStart,
    TurnUpdate,
    decode_event,
    event_type,
)
from worker.bus.client.connection import RedisHealth, unmoved
from worker.cli.bus import BusCommand
from worker.cli.command import Option
from worker.cli.table import format_duration
from worker.core import stream_ids
from worker.settings import Settings
from worker.text import fitted, printable

_BLOCK_MS = 1_000
_BATCH = 500
_GROWING = frozenset({"turn.start", "turn.update", "turn.eager_end", "turn.resume"})


class Watch(BusCommand):
    """Follow turn events as they are published, until Ctrl-C.

    On a terminal a turn grows on one line; elsewhere each event is a line.

    examples:
      turnbus watch
      turnbus watch --session call-1 --from-start --until-ended
      turnbus watch --json | jq -r 'select(.type == "turn.end") | .transcript'
    """

    session: Annotated[
        SessionId | None, Option("this session only (default: every session of the lane)", "ID")
    ] = None
    lane: Annotated[Lane, Option("lane to follow")] = "0"
    from_start: Annotated[bool, Option("begin with the oldest event that Redis keeps")] = False
    until_ended: Annotated[
        bool,
        Option("stop at the next session.ended; with --session, also if that has ended already"),
    ] = False
    json: Annotated[bool, Option("print the events as JSON lines")] = False

    async def use(self, redis: Redis, settings: Settings) -> None:
        """Watch the turns."""
        stream = Keys(settings.prefix).turns(self.lane)
        wanted = self.session and self.session.encode()
        after = b"0-0" if self.from_start else await _newest(redis, stream)
        with self._view() as show:
            if wanted and self.until_ended:
                entry_id, fields = await _last(redis, stream, wanted, after)
                if _is_ended(fields):
                    show(fields)
                    _report_ended(wanted.decode(), entry_id)
                    return
            async for fields in follow(redis, stream, after):
                if wanted and fields.get(b"session") != wanted:
                    continue
                show(fields)
                if self.until_ended and _is_ended(fields):
                    break

    @contextmanager
    def _view(self) -> Iterator[Callable[[Fields], None]]:
        """Yield a function that prints one entry."""
        if self.json:
            yield lambda fields: print(_text(fields, b"event"), flush=True)
        elif not sys.stdout.isatty():
            yield lambda fields: print(line(fields), flush=True)
        else:
            screen = _Screen()
            try:
                yield screen.show
            finally:
                screen.clear()


def _is_ended(fields: Fields) -> bool:
    return fields.get(b"type") == b"session.ended"


def _report_ended(session: str, entry_id: bytes) -> None:
    ago_s = max(0.0, time.time() - stream_ids.milliseconds(entry_id.decode()) / 1000)
    print(
        f"turnbus: {session} ended {format_duration(ago_s)} ago; --from-start shows what is kept",
        file=sys.stderr,
    )


async def _newest(redis: Redis, stream: str) -> bytes:
    """Return the id of a stream's last entry."""
    # Not `$`: events appended between two reads would be skipped.
    newest: Any = await redis.xrevrange(stream, count=1)
    entry_id: bytes = newest[0][0] if newest else b"0-0"
    return entry_id


async def _last(redis: Redis, stream: str, session: bytes, until: bytes) -> tuple[bytes, Fields]:
    """Return id and fields of a session's last event up to an entry; no fields if there is none.

    The search covers only the turns stream, because a consumer may have no other permissions.
    """
    while True:
        page: Any = await redis.xrevrange(stream, until, count=_BATCH)
        for entry_id, fields in page:
            if fields.get(b"session") == session:
                return entry_id, fields
        if len(page) < _BATCH:
            return until, {}
        until = b"(" + page[-1][0]


async def follow(redis: Redis, stream: str, after: bytes) -> AsyncIterator[Fields]:
    """Yield the fields of every entry after `after`, without end."""
    cursors: dict[Any, Any] = {stream: after}
    health = RedisHealth()
    # An error of the first read is raised; later errors are retried.
    await redis.xread(cursors, count=1)
    while True:
        reply: Any = await health.retry(
            lambda: unmoved(lambda: redis.xread(cursors, count=_BATCH, block=_BLOCK_MS))
        )
        for _, entries in reply:
            for entry_id, fields in entries:
                cursors[stream] = entry_id
                yield fields


class _Screen:
    """A terminal whose last line is the open turn."""

    def show(self, fields: Fields) -> None:
        """Print one entry."""
        self.clear()
        text = line(fields)
        if _text(fields, b"type") in _GROWING:
            # A wrapped line could not be cleared.
            print(fitted(text, shutil.get_terminal_size().columns - 1), end="", flush=True)
        else:
            print(text, flush=True)

    def clear(self) -> None:
        """Clear the last line."""
        print("\r\x1b[K", end="", flush=True)


def line(fields: Fields) -> str:
    """Format an entry: seconds of audio, session, provider, event type, and the other fields."""
    try:
        event = decode_event(fields.get(b"event", b""))
    except msgspec.DecodeError:
        words = [_text(fields, b"session"), _text(fields, b"type"), "(unknown to this version)"]
    else:
        seconds = f"{event.audio_ms / 1000:8.2f}"
        provider = event.provider or "-"
        words = [seconds, event.session, provider, event_type(event), *_details(event)]
    return printable(" ".join(words))


def _details(event: Event) -> list[str]:
    match event:
        case SessionStarted(encoding=encoding, sample_rate=rate, worker=worker):
            return [f"{encoding} at {rate} Hz on {worker}"]
        case TurnStart(turn=turn) | TurnResume(turn=turn):
            return [str(turn)]
        case TurnUpdate(turn=turn, transcript=text) | TurnEagerEnd(turn=turn, transcript=text):
            return [str(turn), text]
        case TurnEnd(turn=turn, transcript=text, reason=reason):
            return [str(turn), text] if reason == "model" else [str(turn), f"({reason})", text]
        case AudioGap(missing_ms=missing, reason=reason):
            return [f"{missing} ms, {reason}"]
        case SessionMark(mark=mark):
            return [msgspec.json.encode(mark).decode()]
        case SessionError(code=code, message=message, fatal=fatal):
            return ["fatal" if fatal else "passing", code, message]
        case SessionEnded(reason=reason, turns=turns):
            return [f"{reason}, turns: {turns}"]


def _text(fields: Fields, name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")
