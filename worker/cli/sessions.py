"""`turnbus sessions`: list the sessions with their owner, state and lag."""

import os
import time
from functools import partial
from typing import Annotated

from schemas import Keys
from worker.bus.inspection import SessionStatus, list_sessions
from worker.cli.command import Command, Config, Option, print_json, run_async
from worker.cli.redis import open_redis
from worker.cli.table import format_bytes, format_duration, table
from worker.settings import Settings, load

_HEADER = ("SESSION", "LANE", "OWNER", "STATE", "LAG", "BYTES", "TURNS", "LAST EVENT")


class Sessions(Command):
    """List the live sessions, oldest first.

    The columns are lane, owner, state, audio that no published event covers yet (its length, and
    its approximate size in bytes), turns begun and last event.

    States: waiting (no worker has it), handed_over (released, not taken yet), silent (no heartbeat
    from its owner for a lease), unconnected (its owner reported that it gets no connection to the
    provider, and nothing since), in_turn, between_turns.

    examples:
      turnbus sessions
      turnbus sessions --json | jq -r 'select(.lag_s > 10) | .session'
    """

    json: Annotated[bool, Option("print a JSON line per session")] = False
    config: Config = None

    def run(self) -> int:
        """List the sessions."""
        found = run_async(partial(_list, load(os.environ, self.config)))
        if self.json:
            for status in found:
                print_json(status)
        else:
            now = time.time()
            print(table(_HEADER, [_row(status, now) for status in found]))
        return 0


async def _list(settings: Settings) -> list[SessionStatus]:
    async with open_redis(settings) as redis:
        return await list_sessions(redis, Keys(settings.prefix), settings.lease_ms)


def _row(status: SessionStatus, now: float) -> tuple[str, ...]:
    last = status.last_event or "-"
    if status.last_event_at:
        last = f"{last} {format_duration(max(0.0, now - status.last_event_at))} ago"
    return (
        status.session,
        status.lane,
        status.owner or "-",
        status.state,
        format_duration(status.lag_s),
        format_bytes(status.lag_bytes),
        str(status.turns),
        last,
    )
