"""Turn events for viewers: one read per lane in the process, passed on to each viewer.

A viewer first reads what the lane kept after its position, by itself. It then gets what the
lane's reader reads. Entries are compared by their ids where the two meet, so none is missed or
sent twice. Events are forwarded as the bytes that a worker published.
"""

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Protocol, Self

import anyio
import msgspec
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.audio import Fields, Lane, SessionId
from schemas.keys import Keys
from worker.bus.client.connection import RedisHealth, describe, unmoved
from worker.core import stream_ids
from worker.ingest.responses import HeaderLines
from worker.ingest.sse import (
    COMMENT,
    CONTENT_TYPE,
    BadEventIdError,
    encode_message,
    parse_last_event_id,
)

log = logging.getLogger(__name__)

BLOCK_MS: Final = 1_000
"""Maximum duration of a blocking read."""

PAGE_ENTRIES: Final = 500
"""Maximum number of entries of one read."""

MAX_WAITING: Final = 1_000
"""Maximum number of events that wait for one viewer."""

START_MARGIN_MS: Final = 10_000
"""Maximum difference of the clocks of two masters: a session's entry and its events have ids of
different ones."""

COMMENT_INTERVAL_S: Final = 15.0
"""Time without an event after which a comment is sent."""

WRITE_TIMEOUT_S: Final = 30.0
"""Time after which a viewer that does not read is closed."""

IS_OVER_TIMEOUT_S: Final = 5.0
"""Maximum time to find out that a session is over. The response then begins: before it does, a
client that leaves during an outage of Redis is not noticed."""

ENDED: Final = b"session.ended"
TEXT: Final = "text/plain; charset=utf-8"


class Published(msgspec.Struct, frozen=True):
    """One event of a lane."""

    entry_id: str
    kind: bytes
    data: bytes
    """JSON of the event, as a worker published it."""


class ViewerClosedError(Exception):
    """A viewer gets no more events: it is too far behind, or its lane cannot be read."""


class EventHub:
    """Reads the lanes that have viewers: `async with EventHub(redis, keys) as hub`."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._health = RedisHealth()
        self._lanes: dict[str, _Lane] = {}
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None  # noqa: S101 - set by __aenter__
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    @property
    def lanes(self) -> Sequence[str]:
        """The lanes that are read now."""
        return [*self._lanes]

    async def viewer(self, session: str, lane: str, after: str | None) -> AsyncGenerator[Published]:
        """Yield the events of a session after an entry id, up to its `session.ended`.

        Without an id, the events begin with the session's first, or with the next one if the
        session is unknown. Waits while Redis is away. Raises `ViewerClosedError`.
        """
        ended = False
        if after is None:
            after, ended = await self._beginning(session, lane)
        else:
            after = await self._reached(lane, after)
        async for page in self._pages(lane, after, "+"):
            for entry_id, fields in page:
                after = entry_id
                if (event := _of_session(fields, session, entry_id)) is not None:
                    yield event
                    if event.kind == ENDED:
                        return
        if ended:
            return  # its last event was trimmed
        async with aclosing(self._live(session, lane, after)) as live:
            async for event in live:
                yield event
                if event.kind == ENDED:
                    return

    async def is_over(self, session: str, lane: str, after: str) -> bool:
        """Return whether a session has ended, and has no event after an entry id."""
        state = await self._state(lane, session)
        if state.get("status") == "live":
            return False
        if state.get("status") == "ended":
            reached = await self._reached(lane, after)
            async for page in self._pages(lane, reached, "+"):
                for entry_id, fields in page:
                    if _of_session(fields, session, entry_id) is not None:
                        return False
            return True
        key = self._keys.turns(lane)
        found: Any = await self._call(lambda: self._redis.xrange(key, after, after))
        last = _of_session(found[0][1], session, after) if found else None
        return last is not None and last.kind == ENDED

    async def _live(self, session: str, lane: str, after: str) -> AsyncGenerator[Published]:
        """Yield what is published after an entry id that was read a moment ago."""
        reader = self._lanes.get(lane)
        if reader is None:
            reader = self._lanes[lane] = _Lane(lane, self._keys.turns(lane), after)
            assert self._tasks is not None, "enter the hub first"  # noqa: S101
            self._tasks.start_soon(self._read, reader)
        viewer = _Viewer()
        joined_at = reader.cursor  # the viewer gets what is read after this entry
        viewers = reader.viewers[session.encode()]
        viewers.add(viewer)
        try:
            async for page in self._pages(lane, after, joined_at):
                for entry_id, fields in page:
                    after = entry_id
                    if (event := _of_session(fields, session, entry_id)) is not None:
                        yield event
            while True:
                event = await viewer.next()
                if stream_ids.order(event.entry_id) > stream_ids.order(after):
                    yield event
        finally:
            viewer.close()
            viewers.discard(viewer)
            if not viewers:
                reader.viewers.pop(session.encode(), None)
            if not reader.viewers:
                self._forget(reader)
                reader.scope.cancel()

    async def _read(self, lane: "_Lane") -> None:
        """Read a lane until its last viewer leaves."""
        cursors: dict[Any, Any] = {}

        async def read() -> Any:  # noqa: ANN401 - as in the client
            cursors[lane.stream] = lane.cursor
            return await self._redis.xread(cursors, count=PAGE_ENTRIES, block=BLOCK_MS)

        with lane.scope:
            try:
                while True:
                    for _, entries in await self._call(read) or ():
                        lane.pass_on(entries)
            except RedisError as error:  # no outage: another program has the key, say
                log.error("cannot read %s: %s", lane.stream, describe(error))  # noqa: TRY400 - no traceback
                self._forget(lane)
                lane.end()

    def _forget(self, lane: "_Lane") -> None:
        if self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]

    async def _beginning(self, session: str, lane: str) -> tuple[str, bool]:
        """Return the id after which a session's events begin, and whether it has ended."""
        state = await self._state(lane, session)
        run = state.get("run")
        if run is not None:
            begun_ms = max(0, stream_ids.milliseconds(run) - START_MARGIN_MS)
            return f"{begun_ms}-0", state.get("status") == "ended"
        return await self._newest(lane), False

    async def _reached(self, lane: str, after: str) -> str:
        """Return an id, or the newest one of the lane if that is earlier.

        The lane's reader would pass on nothing before an id that the lane has not reached: a
        failover lost events, say.
        """
        return min(after, await self._newest(lane), key=stream_ids.order)

    async def _newest(self, lane: str) -> str:
        """Return the id of a lane's newest event."""
        key = self._keys.turns(lane)
        # Not `$`: events appended between two reads would be skipped.
        newest: Any = await self._call(lambda: self._redis.xrevrange(key, count=1))
        return newest[0][0].decode() if newest else stream_ids.START

    async def _state(self, lane: str, session: str) -> Mapping[str, str]:
        key, names = self._keys.state(lane, session), ("run", "status")

        async def read() -> Any:  # noqa: ANN401 - as in the client
            return await self._redis.hmget(key, [*names])

        values = await self._call(read)
        return {name: value.decode() for name, value in zip(names, values, strict=True) if value}

    async def _pages(
        self, lane: str, after: str, until: str
    ) -> AsyncIterator[Sequence[tuple[str, Fields]]]:
        """Yield the entries of a lane after an id, up to and including another."""
        key = self._keys.turns(lane)

        async def read() -> Any:  # noqa: ANN401 - as in the client
            return await self._redis.xrange(key, f"({after}", until, count=PAGE_ENTRIES)

        while True:
            page: Any = await self._call(read)
            yield [(entry_id.decode(), fields) for entry_id, fields in page]
            if len(page) < PAGE_ENTRIES:
                return
            after = page[-1][0].decode()

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as in the client
        return await self._health.retry(lambda: unmoved(command))


class _Lane:
    """One lane that is read, and its viewers by their session."""

    def __init__(self, name: str, stream: str, cursor: str) -> None:
        self.name = name
        self.stream = stream
        self.cursor = cursor
        self.viewers: defaultdict[bytes, set[_Viewer]] = defaultdict(set)
        self.scope = anyio.CancelScope()

    def pass_on(self, entries: Sequence[tuple[bytes, Fields]]) -> None:
        """Pass entries on to the viewers of their sessions."""
        for raw_id, fields in entries:
            self.cursor = raw_id.decode()
            viewers = self.viewers.get(fields.get(b"session", b""))
            if viewers and (event := _published(self.cursor, fields)) is not None:
                for viewer in viewers:
                    viewer.put(event)

    def end(self) -> None:
        """End the events of all viewers."""
        for viewers in self.viewers.values():
            for viewer in viewers:
                viewer.end()


class _Viewer:
    """The events that wait for one viewer."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Published](MAX_WAITING)

    def put(self, event: Published) -> None:
        """Add an event. A viewer that is too far behind gets no more."""
        try:
            self._send.send_nowait(event)
        except anyio.WouldBlock:
            self._send.close()
        except anyio.ClosedResourceError:
            return

    def end(self) -> None:
        """Add no more events."""
        self._send.close()

    def close(self) -> None:
        """Drop what waits."""
        self._send.close()
        self._receive.close()

    async def next(self) -> Published:
        """Wait for an event. Raises `ViewerClosedError` after the last one it gets."""
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            raise ViewerClosedError(
                f"over {MAX_WAITING} events behind, or the lane cannot be read"
            ) from None


def _of_session(fields: Fields, session: str, entry_id: str) -> Published | None:
    if fields.get(b"session") != session.encode():
        return None
    return _published(entry_id, fields)


def _published(entry_id: str, fields: Fields) -> Published | None:
    """Return an entry's event; None if another program wrote the entry."""
    kind, data = fields.get(b"type"), fields.get(b"event")
    return None if kind is None or data is None else Published(entry_id, kind, data)


class EventsRequest(Protocol):
    """What `serve_events` reads of a request."""

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        """The values of each query parameter."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names in any case find them."""


class EventsExchange(Protocol):
    """What `serve_events` needs of an exchange (`worker.ingest.http`)."""

    @property
    def request(self) -> EventsRequest:
        """The request."""

    async def respond(
        self, status: int, body: bytes, content_type: str, headers: HeaderLines = ()
    ) -> None:
        """Answer with a complete response."""

    def stream(
        self, content_type: str, headers: HeaderLines = ()
    ) -> AbstractAsyncContextManager[Callable[[bytes], Awaitable[None]]]:
        """Answer with a response whose body is written in parts."""


async def serve_events(exchange: EventsExchange, hub: EventHub, headers: HeaderLines = ()) -> None:
    """Answer a request for the events of a session. The request is authorized already.

    `headers` are those of each answer: a browser stops at a 204 only if the page may read it.

    Answers 400 to a bad query, and 204 if the client has received the session's last event:
    a browser then stops. A viewer that does not read, or is too far behind, is closed; a browser
    then resumes.
    """
    query = exchange.request.query
    try:
        session = msgspec.convert(_last(query, "session"), SessionId)
        lane = msgspec.convert(_last(query, "lane", "0"), Lane)
        # A browser sends the header when it resumes: it is newer than the query of its URL.
        resume = exchange.request.headers.get("Last-Event-ID") or _last(query, "last_event_id")
        after = parse_last_event_id(resume)
    except msgspec.ValidationError:
        line = b"session must be the id of a session, and lane the name of a lane\n"
        await exchange.respond(HTTPStatus.BAD_REQUEST, line, TEXT, headers)
        return
    except BadEventIdError as error:
        await exchange.respond(HTTPStatus.BAD_REQUEST, f"{error}\n".encode(), TEXT, headers)
        return
    is_over = False
    if after is not None:
        with anyio.move_on_after(IS_OVER_TIMEOUT_S):
            is_over = await hub.is_over(session, lane, after)
    if is_over:
        await exchange.respond(HTTPStatus.NO_CONTENT, b"", TEXT, headers)
        return
    async with exchange.stream(CONTENT_TYPE, headers) as write:
        await _Writer(write).run(hub.viewer(session, lane, after))


def _last(query: Mapping[str, Sequence[str]], name: str, default: str = "") -> str:
    """Return the last value of a parameter, which is the one that is authorized."""
    return next(reversed(query.get(name, ())), default)


class _Writer:
    """Writes events and, while there are none, comments; each within `WRITE_TIMEOUT_S`."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._lock = anyio.Lock()
        self._written_at = anyio.current_time()

    async def run(self, viewer: AsyncGenerator[Published]) -> None:
        """Write all events of a viewer; return early if the viewer is closed."""
        async with aclosing(viewer), anyio.create_task_group() as tasks:
            tasks.start_soon(self._comment, tasks.cancel_scope)
            with suppress(ViewerClosedError):  # the response ends, and its client may resume
                async for event in viewer:
                    message = encode_message(event.entry_id, event.kind, event.data)
                    if not await self._send(message):
                        break
            tasks.cancel_scope.cancel()

    async def _comment(self, writing: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep_until(self._written_at + COMMENT_INTERVAL_S)
            is_due = anyio.current_time() >= self._written_at + COMMENT_INTERVAL_S
            if is_due and not await self._send(COMMENT):
                writing.cancel()

    async def _send(self, data: bytes) -> bool:
        """Write; return whether the client took the data in time."""
        async with self._lock:
            with anyio.move_on_after(WRITE_TIMEOUT_S) as scope:
                await self._write(data)
            self._written_at = anyio.current_time()
            return not scope.cancelled_caught
