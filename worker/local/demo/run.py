"""Runs the demo: producers send the sessions, a process is killed, a display shows the events."""

import time
from collections.abc import Mapping
from contextlib import aclosing
from io import StringIO
from typing import Any, Final, Literal, TypeAlias

import anyio
import msgspec
from redis.exceptions import RedisError

from schemas import SessionEntry
from schemas.turns import decode_turn_entry
from worker import telemetry
from worker.errors import BusUnavailableError, TurnbusError
from worker.local.demo.display import Display, ReceivedEvent
from worker.local.demo.environment import DemoEnvironment
from worker.local.demo.sessions import DemoSession
from worker.local.demo.state import DemoState, SessionState
from worker.local.demo.summary import Summary, summarize
from worker.local.demo.traces import read
from worker.local.harness import WORKERS
from worker.producer import Producer
from worker.settings import PROVIDERS
from worker.telemetry.traces import ProducerSpan

Victim: TypeAlias = Literal["worker", "provider"]
"""What is killed: a worker, or the provider that all sessions use."""

_BLOCK_MS: Final = 50
_KILL_AT_S: Final = 9.0  # all sessions have begun, most are in a turn, and no turn is long yet
_KILL_AT_SHARE: Final = 0.4  # share of the demo's duration, if that is sooner
_AWAY_S: Final = 1.0  # a killed provider is away for longer: it has to load its recognizer
_PATIENCE_S: Final = 60.0  # after the last audio
_LOOK_S: Final = 0.05


async def run_demo(
    sessions: list[DemoSession],
    display: Display,
    environment: Mapping[str, str],
    victim: Victim | None,
) -> Summary:
    """Run the demo, from the start of its processes to their end; return the summary.

    The busiest worker, or the first of two providers, is killed while it has open turns. Spans are
    exported as the environment configures; spans for the console are shown at the end. Raises
    TurnbusError if a process fails, SettingsError if the telemetry configuration is invalid.
    """
    providers = PROVIDERS if victim == "provider" else PROVIDERS[:1]
    console = StringIO()
    telemetry.configure("demo", environment, console)
    try:
        async with DemoEnvironment.open(display.status, environment, providers) as demo:
            state = await _run_in(demo, sessions, display, victim)
            summary = summarize(state, time.time())
            printed = await demo.stop()
    except* RedisError as errors:
        raise BusUnavailableError("the embedded Redis stopped") from errors
    finally:
        telemetry.shut_down()
    spans = [span for text in (console.getvalue(), *printed) for span in read(text)]
    display.finish(state, summary, spans)
    return summary


async def _run_in(
    demo: DemoEnvironment, sessions: list[DemoSession], display: Display, victim: Victim | None
) -> DemoState:
    state = DemoState(sessions, WORKERS, tuple(demo.stt_servers), time.time())
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        limit = anyio.CancelScope()
        tasks.start_soon(_play_all, demo, state, began, limit)
        if victim is not None:
            tasks.start_soon(_kill, demo, state, began, victim)
        with limit:
            await _follow(demo, state, display)
        tasks.cancel_scope.cancel()
    if not state.over:
        late = ", ".join(name for name, row in state.rows.items() if not row.ended)
        raise TurnbusError(f"not ended: {late}; the workers' last log lines:\n{demo.worker_logs()}")
    return state


async def _play_all(
    demo: DemoEnvironment, state: DemoState, began: float, limit: anyio.CancelScope
) -> None:
    """Produce every session, then set the time limit for the remaining events."""
    async with anyio.create_task_group() as tasks:
        for row in state.rows.values():
            tasks.start_soon(_play, demo, state, row, began)
    limit.deadline = anyio.current_time() + _PATIENCE_S


async def _play(demo: DemoEnvironment, state: DemoState, row: SessionState, began: float) -> None:
    """Produce one session live: each chunk is sent when it would be complete."""
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
    producer = Producer(demo.redis, demo.keys, entry)
    announcement.sent(await producer.announce())

    def warn(text: str) -> None:
        state.on_warning(text, time.time())

    async with aclosing(role.chunks(warn)) as chunks:
        async for chunk in chunks:
            due += role.line.chunk_ms / 1000
            await anyio.sleep_until(due)
            row.sending(chunk, time.time())
            await producer.append(chunk)
    await producer.end()


async def _kill(demo: DemoEnvironment, state: DemoState, began: float, victim: Victim) -> None:
    """Kill the worker with the most open turns, or the provider, while there are open turns."""
    lengths = [row.role.leaves_s for row in state.rows.values()]
    length = max((each for each in lengths if each is not None), default=0.0)
    at_share = _KILL_AT_S if None in lengths else _KILL_AT_SHARE * length
    await anyio.sleep_until(began + min(_KILL_AT_S, at_share))
    while True:
        worker = state.busiest()
        if worker is not None and victim == "worker":
            demo.workers[worker].kill()
            state.on_kill(worker, time.time())
            return
        if victim == "provider" and state.turns_with_text():
            await _kill_provider(demo, state)
        await anyio.sleep(_LOOK_S)


async def _kill_provider(demo: DemoEnvironment, state: DemoState) -> None:
    """Kill the preferred provider, and run it again until cancelled."""
    provider = state.providers[0]
    demo.stt_servers[provider].kill()
    state.on_provider_kill(time.time())
    await anyio.sleep(_AWAY_S)
    async with demo.restarted(provider):
        state.on_provider_back(time.time())
        await anyio.sleep_forever()


async def _follow(demo: DemoEnvironment, state: DemoState, display: Display) -> None:
    """Read the turns stream until every session has ended, and show it."""
    stream = demo.keys.turns("0")
    cursors: dict[Any, Any] = {stream: b"0-0"}
    while not state.over:
        received = []
        reply: Any = await demo.redis.xread(cursors, block=_BLOCK_MS)
        at = time.time()
        for _, entries in reply:
            for entry_id, fields in entries:
                cursors[stream] = entry_id
                event = decode_turn_entry(fields).event
                state.on_event(event, at)
                received.append(ReceivedEvent(at, fields[b"event"], event))
        state.set_owner(await demo.owners(), time.time())
        if state.failed:
            avoided = await demo.avoids(state.failed)
            state.set_avoided(time.time(), avoided=avoided)
        display.update(state, received)
