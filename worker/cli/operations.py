"""The commands of operators: `turnbus sessions`, `drain`, `dead` and `end`."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import msgspec
from msgspec import Meta
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas import Keys
from schemas.audio import SessionId
from schemas.turns import WorkerRecord
from worker.bus.dead_letters import ListedDeadLetter, list_dead_letters, requeue
from worker.bus.inspection import SessionStatus, announced, list_sessions
from worker.bus.registry import read_workers, request_drain
from worker.cli.bus import BusCommand
from worker.cli.command import Argument, Option, print_json
from worker.cli.table import format_bytes, format_duration, table
from worker.core import stream_ids
from worker.errors import TurnbusError
from worker.settings import Settings
from worker.text import pluralize

_SESSIONS_HEADER = (
    *("SESSION", "LANE", "OWNER", "STATE", "PROVIDER", "LAG", "BYTES", "TURNS", "LAST EVENT"),
)
_DEAD_HEADER = ("ID", "AGE", "SESSION", "REASON", "SIZE", "DETAIL")
EntryId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,20}-[0-9]{1,20}\Z",
        description="an id of the list, MILLISECONDS-NUMBER",
    ),
]
_POLL_INTERVAL_S = 0.25
_SILENT_S = 15.0
"""Timeout without a heartbeat, after which the command gives up."""


class Sessions(BusCommand):
    """List the live sessions, oldest first.

    The columns are lane, owner, state, provider of the last connection, audio that no published
    event covers yet (its length, and its approximate size in bytes), turns begun and last event.

    States: waiting (no worker has it), handed_over (released, not taken yet), silent (no heartbeat
    from its owner for a lease), unconnected (its owner reported that it gets no connection to the
    provider, and nothing since), in_turn, between_turns.

    examples:
      turnbus sessions
      turnbus sessions --json | jq -r 'select(.lag_s > 10) | .session'
    """

    json: Annotated[bool, Option("print a JSON line per session")] = False

    async def use(self, redis: Redis, settings: Settings) -> None:
        """List the sessions."""
        found = await list_sessions(redis, Keys(settings.prefix), settings.lease_ms)
        if self.json:
            print_json(*found)
        else:
            now = time.time()
            print(table(_SESSIONS_HEADER, [_session_row(status, now) for status in found]))


def _session_row(status: SessionStatus, now: float) -> tuple[str, ...]:
    last = status.last_event or "-"
    if status.last_event_at:
        last = f"{last} {format_duration(max(0.0, now - status.last_event_at))} ago"
    return (
        status.session,
        status.lane,
        status.owner or "-",
        status.state,
        status.provider or "-",
        format_duration(status.lag_s),
        format_bytes(status.lag_bytes),
        str(status.turns),
        last,
    )


class Progress(msgspec.Struct, frozen=True):
    """Progress of a drain."""

    worker: str
    sessions: int
    drained: bool


class Drain(BusCommand):
    """Empty one worker, on any host, and wait until it is empty.

    It takes no new sessions and releases those it has, between turns if possible. Its process
    keeps running, idle and unready, because an orchestrator would restart it. Stop it, or restart
    it to let it take sessions again. Exit code 1 if there is no such worker, or if it disappears
    before it is empty.

    examples:
      turnbus drain worker-3
      turnbus drain worker-3 --json
    """

    worker: Annotated[str, Argument("its TURNBUS_WORKER_ID", "WORKER", parse=str)]
    json: Annotated[bool, Option("print progress as JSON lines")] = False

    async def use(self, redis: Redis, settings: Settings) -> None:
        """Request the drain and wait for it."""
        keys = Keys(settings.prefix)
        known = await read_workers(redis, keys)
        if self.worker not in known:
            running = f"running: {', '.join(sorted(known))}" if known else "no worker is running"
            raise TurnbusError(f"there is no worker {self.worker}; {running}")
        consumer = known[self.worker].consumer
        await request_drain(redis, keys, consumer)
        reported = None
        async for record in _heartbeats(redis, keys, self.worker, consumer):
            drained = record.state == "draining" and record.sessions == 0
            progress = Progress(self.worker, record.sessions, drained)
            if progress != reported:
                self._report(progress)
            if drained:
                return
            reported = progress

    def _report(self, progress: Progress) -> None:
        if self.json:
            print_json(progress)
        elif progress.drained:
            print(f"{progress.worker} is empty and can be stopped", flush=True)
        else:
            print(f"{progress.worker}: {pluralize(progress.sessions, 'session')} left", flush=True)


async def _heartbeats(
    redis: Redis, keys: Keys, worker: str, consumer: str
) -> AsyncIterator[WorkerRecord]:
    """Poll a worker's record.

    Raises `TurnbusError` if the process ends or its heartbeats stop.
    """
    heartbeat, seen_at = 0.0, time.monotonic()
    while True:
        record = (await read_workers(redis, keys)).get(worker)
        if record is None or record.consumer != consumer:
            change = "stopped" if record is None else "was restarted"
            raise TurnbusError(f"{worker} {change} before it was empty")
        if record.heartbeat != heartbeat:
            heartbeat, seen_at = record.heartbeat, time.monotonic()
        elif time.monotonic() - seen_at > _SILENT_S:
            silence = f"no heartbeat for {_SILENT_S:g} s"
            raise TurnbusError(f"{worker} sent {silence}; other workers take over")
        yield record
        await anyio.sleep(_POLL_INTERVAL_S)


class Dead(BusCommand):
    """List the entries that workers rejected, oldest first, with the reasons.

    Session entries are kept, audio never. After its cause is fixed, a session entry can be
    announced again, except if the provider rejected it: that session is over. Exit code 1 if the
    entry would only be rejected again.

    examples:
      turnbus dead
      turnbus dead --json | jq -r 'select(.reason == "unusable") | .dead'
      turnbus dead --requeue 1767225600000-0
    """

    requeue: Annotated[EntryId | None, Option("announce this session again", "ID")] = None
    json: Annotated[bool, Option("print JSON lines")] = False

    async def use(self, redis: Redis, settings: Settings) -> None:
        """List the dead letters, or announce one again."""
        keys = Keys(settings.prefix)
        if self.requeue:
            entry_id = await requeue(redis, keys, self.requeue)
            if self.json:
                print_json({"dead": self.requeue, "entry": entry_id})
            else:
                print(f"{self.requeue} is announced again as {entry_id}")
            return
        found = [each async for each in list_dead_letters(redis, keys)]
        if self.json:
            print_json(*found)
        else:
            now = time.time()
            print(table(_DEAD_HEADER, [_dead_row(each, now) for each in found]))


def _dead_row(each: ListedDeadLetter, now: float) -> tuple[str, ...]:
    age = max(0.0, now - stream_ids.milliseconds(each.dead) / 1000)
    return (
        each.dead,
        format_duration(age),
        each.session or "-",
        each.reason,
        format_bytes(each.size),
        each.detail,
    )


class End(BusCommand):
    """End a session as its producer would: append `end` to its audio.

    The worker still transcribes the earlier audio, then publishes session.ended. Exit code 1 if
    there is no such session, or if it is over.

    examples:
      turnbus end call-1
      turnbus end call-1 --json
    """

    session: Annotated[SessionId, Argument("its id", "SESSION")]
    json: Annotated[bool, Option("print what was appended as JSON")] = False

    async def use(self, redis: Redis, settings: Settings) -> None:
        """End the session."""
        keys = Keys(settings.prefix)
        lane = await _lane_of(redis, keys, self.session)
        try:
            entry_id: Any = await redis.xadd(keys.audio(lane, self.session), {"end": "1"})
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise TurnbusError(f"{self.session} is over") from None
        if self.json:
            print_json({"session": self.session, "lane": lane, "entry": entry_id.decode()})
        else:
            print(f"{self.session}: appended `end`; the last event will be session.ended")


async def _lane_of(redis: Redis, keys: Keys, session: str) -> str:
    """Return the lane of a live session.

    Raises `TurnbusError` if the session is over or was never announced.
    """
    async for each in announced(redis, keys):
        if each.session == session:
            return each.lane
    known: Any = await redis.smembers(keys.lanes)
    for lane in sorted({lane.decode() for lane in known} | {"0"}):
        if await redis.hget(keys.state(lane, session), "status") is not None:
            raise TurnbusError(f"{session} is over")
    raise TurnbusError(f"there is no session {session}")
