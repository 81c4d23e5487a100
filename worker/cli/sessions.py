"""`turnbus sessions`: list the sessions with their owner, state and lag."""

import time

from redis.asyncio import Redis

from schemas import Keys
from worker.bus.inspection import SessionStatus, list_sessions
from worker.cli.bus import BusCommand
from worker.cli.command import print_json
from worker.cli.table import format_bytes, format_duration, table
from worker.settings import Settings

_HEADER = ("SESSION", "LANE", "OWNER", "STATE", "LAG", "BYTES", "TURNS", "LAST EVENT")


class Sessions(BusCommand):
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

    async def use(self, redis: Redis, settings: Settings) -> None:
        """List the sessions."""
        found = await list_sessions(redis, Keys(settings.prefix), settings.lease_ms)
        if self.json:
            print_json(*found)
        else:
            now = time.time()
            print(table(_HEADER, [_row(status, now) for status in found]))


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
