"""The performance: producers play the cast, a worker is killed, the audience sees the bus."""

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from io import StringIO
from typing import Any, Final, NamedTuple, Protocol, Self

import anyio
import msgspec
from redis.exceptions import RedisError

from schemas import SessionEntry
from schemas.turns import Event, decode_turn_entry
from worker import telemetry
from worker.errors import BusUnavailableError, TurnbusError
from worker.local.demo.environment import WORKERS, DemoEnvironment
from worker.local.demo.sessions import DemoSession
from worker.local.demo.spans import Span, read
from worker.local.demo.state import DemoState, SessionState
from worker.local.demo.summary import Summary, summarize
from worker.producer import Producer
from worker.telemetry.traces import ProducerSpan

_BLOCK_MS: Final = 50
_KILL_AT_S: Final = 9.0  # all have entered, most are in a turn, and no turn is long yet
_KILL_AT_SHARE: Final = 0.4  # of the demo, where that comes sooner
_PATIENCE_S: Final = 60.0  # after the last audio
_LOOK_S: Final = 0.05


class ReceivedEvent(NamedTuple):
    """An event as it was read: when (Unix seconds), its JSON, and decoded."""

    at: float
    json: bytes
    event: Event


class Display(Protocol):
    """Who is shown the demo. Entered before anything starts, left whatever happens."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def status(self, text: str) -> None:
        """Take what is being done before the curtain rises."""
        ...

    def update(self, board: DemoState, heard: Sequence[ReceivedEvent]) -> None:
        """Look at the board, brought up to date with these events; many times a second."""
        ...

    def finish(self, board: DemoState, summary: Summary, spans: Sequence[Span]) -> None:
        """Take the end, and the spans if they are to be shown."""
        ...


async def run_demo(
    cast: list[DemoSession], audience: Display, environment: Mapping[str, str], *, kill: bool
) -> None:
    """Run the demo from the first process to the last.

    With `kill` the worker that has most to do is killed on the way. Spans go where the environment
    says; what goes to the console is shown at the end. Raises TurnbusError if something that should
    run does not, SettingsError if spans cannot go there.
    """
    console = StringIO()
    telemetry.configure("demo", environment, console)
    try:
        async with DemoEnvironment.open(audience.status, environment) as stage:
            board = await _run_in(stage, cast, audience, kill=kill)
            summary = summarize(board, time.time())
            printed = await stage.stop()
    except* RedisError as errors:
        raise BusUnavailableError("the embedded Redis went away") from errors
    finally:
        telemetry.shut_down()
    spans = [span for text in (console.getvalue(), *printed) for span in read(text)]
    audience.finish(board, summary, spans)


async def _run_in(
    stage: DemoEnvironment, cast: list[DemoSession], audience: Display, *, kill: bool
) -> DemoState:
    board = DemoState(cast, WORKERS, time.time())
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        limit = anyio.CancelScope()
        tasks.start_soon(_play_all, stage, board, began, limit)
        if kill:
            tasks.start_soon(_kill, stage, board, began)
        with limit:
            await _follow(stage, board, audience)
        tasks.cancel_scope.cancel()
    if not board.over:
        late = ", ".join(name for name, row in board.rows.items() if not row.ended)
        raise TurnbusError(f"not ended: {late}; the workers wrote:\n{stage.worker_logs()}")
    return board


async def _play_all(
    stage: DemoEnvironment, board: DemoState, began: float, limit: anyio.CancelScope
) -> None:
    """Produce every session; then give what listens to them some time."""
    async with anyio.create_task_group() as tasks:
        for row in board.rows.values():
            tasks.start_soon(_play, stage, row, began)
    limit.deadline = anyio.current_time() + _PATIENCE_S


async def _play(stage: DemoEnvironment, row: SessionState, began: float) -> None:
    """Produce one session as a caller would, each chunk once it would be complete."""
    role = row.role
    due = began + role.enters_s
    await anyio.sleep_until(due)
    announcement = ProducerSpan(role.session)
    entry = SessionEntry(
        session=role.session,
        encoding=role.line.encoding,
        sample_rate=role.line.sample_rate,
        metadata={"speaker": role.speaker},
    )
    entry = msgspec.structs.replace(entry, **announcement.fields)
    producer = Producer(stage.redis, stage.keys, entry)
    announcement.sent(await producer.announce())
    async with aclosing(role.chunks()) as chunks:
        async for chunk in chunks:
            due += role.line.chunk_ms / 1000
            await anyio.sleep_until(due)
            row.sending(chunk, time.time())
            await producer.append(chunk)
    await producer.end()


async def _kill(stage: DemoEnvironment, board: DemoState, began: float) -> None:
    """Kill the worker that has most to do, in the middle of its turns."""
    lengths = [row.role.leaves_s for row in board.rows.values()]
    length = max((each for each in lengths if each is not None), default=0.0)
    at_share = _KILL_AT_S if None in lengths else _KILL_AT_SHARE * length
    await anyio.sleep_until(began + min(_KILL_AT_S, at_share))
    while True:
        if victim := board.busiest():
            stage.workers[victim].kill()
            board.on_kill(victim, time.time())
            return
        await anyio.sleep(_LOOK_S)


async def _follow(stage: DemoEnvironment, board: DemoState, audience: Display) -> None:
    """Read the turns stream until every session has ended, and show it."""
    stream = stage.keys.turns("0")
    cursors: dict[Any, Any] = {stream: b"0-0"}
    while not board.over:
        heard = []
        reply: Any = await stage.redis.xread(cursors, block=_BLOCK_MS)
        at = time.time()
        for _, entries in reply:
            for entry_id, fields in entries:
                cursors[stream] = entry_id
                event = decode_turn_entry(fields).event
                board.on_event(event, at)
                heard.append(ReceivedEvent(at, fields[b"event"], event))
        board.set_owner(await stage.owners(), time.time())
        audience.update(board, heard)
