"""The hub of turn events: catch-up, the seam to live events, slow viewers, outages."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from redis.asyncio import Redis as AnyRedis

from schemas import Keys
from tests.support.polling import PATIENCE_S, eventually
from worker.bus.client.connection import connect
from worker.ingest import events as module
from worker.ingest.events import EventHub, Published, ViewerClosedError, serve_events
from worker.ingest.responses import HeaderLines
from worker.local.redis import EmbeddedRedis

KEYS = Keys()
TURNS = KEYS.turns("0")


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis.start(append_only=True) as server:
        yield server


@pytest.fixture
async def bus(server: EmbeddedRedis) -> AsyncIterator[AnyRedis]:
    async with connect(server.url) as client:
        yield client


@pytest.fixture
async def hub(bus: AnyRedis) -> AsyncIterator[EventHub]:
    async with EventHub(bus, KEYS) as hub:
        yield hub


async def publish(
    bus: AnyRedis, number: int, session: str = "s", kind: str = "turn.update", lane: str = "0"
) -> str:
    fields: Any = {"session": session, "type": kind, "event": str(number)}
    added: Any = await bus.xadd(KEYS.turns(lane), fields)
    return cast("str", added.decode())


async def begin(bus: AnyRedis, session: str = "s", status: str = "live") -> None:
    run: Any = await bus.xadd(KEYS.sessions, {"session": session})
    await bus.hset(KEYS.state("0", session), mapping={"run": run, "status": status})


async def take(viewer: AsyncGenerator[Published], count: int) -> list[int]:
    with anyio.fail_after(PATIENCE_S):
        return [int((await anext(viewer)).data) for _ in range(count)]


async def rest(viewer: AsyncGenerator[Published]) -> list[int]:
    with anyio.fail_after(PATIENCE_S):
        return [int(event.data) async for event in viewer]


async def test_viewer_gets_its_session_from_its_start(bus: AnyRedis, hub: EventHub) -> None:
    await begin(bus)
    for number in range(1, 4):
        await publish(bus, number)
        await publish(bus, -number, "other")
    viewer = hub.viewer("s", "0", None)
    assert await take(viewer, 3) == [1, 2, 3]
    await publish(bus, 4, kind="session.ended")
    assert await rest(viewer) == [4]
    await eventually(lambda: not hub.lanes, "the end of reading")


async def test_unknown_session_begins_with_next_event(bus: AnyRedis, hub: EventHub) -> None:
    await publish(bus, 1)
    async with aclosing(hub.viewer("s", "0", None)) as viewer, anyio.create_task_group() as tasks:
        received: list[int] = []

        async def read() -> None:
            received.extend(await take(viewer, 1))

        tasks.start_soon(read)
        await eventually(lambda: hub.lanes, "the reader of the lane")
        await publish(bus, 2)
    assert received == [2]


async def test_ended_session_whose_end_was_trimmed_ends(bus: AnyRedis, hub: EventHub) -> None:
    await begin(bus, status="ended")
    await publish(bus, 1, "other")
    assert await rest(hub.viewer("s", "0", None)) == []


async def test_no_event_is_missed_or_repeated_at_the_seam(
    bus: AnyRedis, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer never pauses while viewers join, resume and leave."""
    monkeypatch.setattr(module, "PAGE_ENTRIES", 20)
    ids: list[str] = []
    done = False

    async def write() -> None:
        while not done:
            ids.append(await publish(bus, len(ids)))

    async def until_written(number: int) -> None:
        await eventually(lambda: len(ids) > number, "the reply to the writer")

    async def view(start: int) -> None:
        after = start
        for _ in range(5):  # each time, resume after the last event
            async with aclosing(hub.viewer("s", "0", ids[after])) as viewer:
                assert await take(viewer, 40) == [*range(after + 1, after + 41)]
            after += 40
            await until_written(after)

    async with anyio.create_task_group() as writing:
        writing.start_soon(write)
        await eventually(lambda: len(ids) > 100, "events")
        async with anyio.create_task_group() as viewing:
            for start in (0, 5, 60, 100):
                viewing.start_soon(view, start)
        done = True
    assert hub.lanes == []


async def test_viewers_of_a_lane_share_one_reader(bus: AnyRedis, hub: EventHub) -> None:
    await publish(bus, 1)
    first, second = (hub.viewer("s", "0", "0-0") for _ in range(2))
    other = hub.viewer("s", "1", "0-0")
    await publish(bus, 9, lane="1")
    for viewer, expected in ((first, 1), (second, 1), (other, 9)):
        assert await take(viewer, 1) == [expected]
    async with anyio.create_task_group() as tasks:
        for viewer in (first, second, other):
            tasks.start_soon(take, viewer, 1)
        await eventually(lambda: sorted(hub.lanes) == ["0", "1"], "two readers")
        await publish(bus, 2)
        await publish(bus, 10, lane="1")
    await first.aclose()
    assert sorted(hub.lanes) == ["0", "1"]
    await second.aclose()
    await other.aclose()
    assert hub.lanes == []


async def test_slow_viewer_is_closed_and_others_are_not(
    bus: AnyRedis, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    await publish(bus, 0)
    async with (
        aclosing(hub.viewer("s", "0", "0-0")) as slow,
        aclosing(hub.viewer("s", "0", "0-0")) as quick,
    ):
        assert await take(slow, 1) == await take(quick, 1) == [0]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take, slow, 1)
            await eventually(lambda: hub.lanes, "the reader of the lane")
            await publish(bus, 1)
        for number in range(2, 30):
            await publish(bus, number)
            if number == 2:
                assert await take(quick, 2) == [1, 2]
            else:
                assert await take(quick, 1) == [number]
        assert await take(slow, 10) == [*range(2, 12)]
        with pytest.raises(ViewerClosedError):
            await take(slow, 1)


async def test_viewers_survive_an_outage(
    server: EmbeddedRedis, bus: AnyRedis, hub: EventHub
) -> None:
    await publish(bus, 1)
    async with aclosing(hub.viewer("s", "0", "0-0")) as viewer, anyio.create_task_group() as tasks:
        assert await take(viewer, 1) == [1]
        received: list[int] = []

        async def read() -> None:
            received.extend(await take(viewer, 2))

        tasks.start_soon(read)
        await eventually(lambda: hub.lanes, "the reader of the lane")
        await server.restart()
        await publish(bus, 2)
        await publish(bus, 3)
    assert received == [2, 3]


async def test_key_of_another_type_closes_only_viewers(bus: AnyRedis, hub: EventHub) -> None:
    await publish(bus, 1)
    async with aclosing(hub.viewer("s", "0", "0-0")) as viewer, anyio.create_task_group() as tasks:
        await take(viewer, 1)

        async def read() -> None:
            with pytest.raises(ViewerClosedError):
                await take(viewer, 1)

        tasks.start_soon(read)
        await eventually(lambda: hub.lanes, "the reader of the lane")
        await bus.delete(TURNS)
        await bus.set(TURNS, "taken")
    await bus.delete(TURNS)
    await publish(bus, 2)
    async with aclosing(hub.viewer("s", "0", "0-0")) as viewer:
        assert await take(viewer, 1) == [2]


class Request:
    def __init__(self, query: Mapping[str, str], last_event_id: str | None) -> None:
        self.query = {name: [value] for name, value in query.items()}
        self.headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}


class FakeExchange:
    """An exchange that keeps the answer."""

    def __init__(self, header: str | None = None, **query: str) -> None:
        self._request = Request(query, header)
        self.status = 0
        self.body = b""
        self.blocked = False

    @property
    def request(self) -> Request:
        return self._request

    async def respond(
        self, status: int, body: bytes, content_type: str, headers: HeaderLines = ()
    ) -> None:
        assert content_type.startswith("text/plain")
        self.status, self.body = status, body

    @asynccontextmanager
    async def stream(
        self, content_type: str, headers: HeaderLines = ()
    ) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
        assert content_type == "text/event-stream"
        self.status = 200

        async def write(data: bytes) -> None:
            if self.blocked:
                await anyio.sleep_forever()
            self.body += data

        yield write


async def serve(hub: EventHub, exchange: FakeExchange) -> FakeExchange:
    with anyio.fail_after(PATIENCE_S):
        await serve_events(exchange, hub)
    return exchange


async def test_events_are_served_until_the_end(bus: AnyRedis, hub: EventHub) -> None:
    await begin(bus)
    first = await publish(bus, 1)
    last = await publish(bus, 2, kind="session.ended")
    end = f"id: {last}\nevent: session.ended\ndata: 2\n\n"
    whole = await serve(hub, FakeExchange(session="s"))
    assert whole.body.decode() == f"id: {first}\nevent: turn.update\ndata: 1\n\n{end}"
    for exchange in (
        FakeExchange(session="s", last_event_id=first),
        FakeExchange(first, session="s"),
        FakeExchange(first, session="s", last_event_id="0-0"),
    ):
        assert (await serve(hub, exchange)).body.decode() == end


async def test_last_session_of_the_query_counts(bus: AnyRedis, hub: EventHub) -> None:
    await publish(bus, 1, "other", kind="session.ended")
    await publish(bus, 2, kind="session.ended")
    exchange = FakeExchange("0-0")
    exchange.request.query = {"session": ["other", "s"]}
    assert b"data: 2\n" in (await serve(hub, exchange)).body
    assert b"data: 1\n" not in exchange.body


@pytest.mark.parametrize("state", ["ended", "live", ""])
async def test_resuming_behind_the_end_is_204(bus: AnyRedis, hub: EventHub, state: str) -> None:
    last = await publish(bus, 1, kind="session.ended")
    if state:
        await begin(bus, status=state)
    if state == "live":  # the id began again
        await publish(bus, 2, kind="session.ended")
    exchange = await serve(hub, FakeExchange(last, session="s"))
    assert exchange.status == (200 if state == "live" else 204)


async def test_resuming_during_an_outage_gets_comments(
    server: EmbeddedRedis, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IS_OVER_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "COMMENT_INTERVAL_S", 0.01)
    exchange = FakeExchange("1-0", session="s")
    await server.kill()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, hub, exchange)
        await eventually(lambda: exchange.body.count(b":\n\n") > 1, "comments")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, b"session must be"),
        ({"session": "a b"}, b"session must be"),
        ({"session": "s", "lane": "}"}, b"session must be"),
        ({"session": "s", "last_event_id": "$"}, b"Last-Event-ID must be"),
    ],
)
async def test_bad_queries_are_400(hub: EventHub, query: dict[str, str], said: bytes) -> None:
    exchange = await serve(hub, FakeExchange(None, **query))
    assert exchange.status == 400
    assert exchange.body.startswith(said)


async def test_comments_fill_pauses(
    bus: AnyRedis, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMENT_INTERVAL_S", 0.01)
    exchange = FakeExchange(session="s")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, hub, exchange)
        await eventually(lambda: exchange.body.count(b":\n\n") > 1, "comments")
        await eventually(lambda: hub.lanes, "the reader of the lane")
        await publish(bus, 1, kind="session.ended")
    assert exchange.body.endswith(b"data: 1\n\n")


@pytest.mark.parametrize("sends", [["turn.update"], []])
async def test_client_that_does_not_read_is_closed(
    bus: AnyRedis, hub: EventHub, monkeypatch: pytest.MonkeyPatch, sends: Sequence[str]
) -> None:
    monkeypatch.setattr(module, "WRITE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "COMMENT_INTERVAL_S", 0.01 if not sends else 60)
    await begin(bus)
    for kind in sends:
        await publish(bus, 1, kind=kind)
    exchange = FakeExchange(session="s")
    exchange.blocked = True
    await serve(hub, exchange)
    assert hub.lanes == []


async def test_id_ahead_of_the_lane_stops_no_viewer(bus: AnyRedis, hub: EventHub) -> None:
    """A failover lost events that a viewer received, or a client made its id up."""
    await begin(bus)
    last = await publish(bus, 1)
    async with (
        aclosing(hub.viewer("s", "0", "99999999999999-0")) as ahead,
        aclosing(hub.viewer("s", "0", last)) as other,
        anyio.create_task_group() as tasks,
    ):
        received: list[list[int]] = []

        async def read(viewer: AsyncGenerator[Published]) -> None:
            received.append(await take(viewer, 1))

        tasks.start_soon(read, ahead)
        await eventually(lambda: hub.lanes, "the reader of the lane")
        tasks.start_soon(read, other)
        await publish(bus, 2)
    assert received == [[2], [2]]


async def test_largest_id_of_an_ended_session_is_204(bus: AnyRedis, hub: EventHub) -> None:
    await begin(bus, status="ended")
    await publish(bus, 1, kind="session.ended")
    exchange = await serve(hub, FakeExchange(f"{2**64 - 1}-{2**64 - 1}", session="s"))
    assert exchange.status == 204
