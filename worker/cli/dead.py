"""`turnbus dead`: list dead letters, and announce one again."""

import time
from typing import Annotated

from msgspec import Meta
from redis.asyncio import Redis

from schemas import Keys
from worker.bus.dead_letters import ListedDeadLetter, list_dead_letters, requeue
from worker.cli.bus import BusCommand
from worker.cli.command import Option, print_json
from worker.cli.table import format_bytes, format_duration, table
from worker.core import stream_ids
from worker.settings import Settings

EntryId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,20}-[0-9]{1,20}\Z",
        description="an id of the list, MILLISECONDS-NUMBER",
    ),
]
_HEADER = ("ID", "AGE", "SESSION", "REASON", "SIZE", "DETAIL")


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

    async def use(self, redis: Redis, settings: Settings) -> None:
        """List the dead letters, or announce one again."""
        keys = Keys(settings.prefix)
        if self.requeue:
            entry = await requeue(redis, keys, self.requeue)
            if self.json:
                print_json({"dead": self.requeue, "entry": entry})
            else:
                print(f"{self.requeue} is announced again as {entry}")
            return
        found = [each async for each in list_dead_letters(redis, keys)]
        if self.json:
            print_json(*found)
        else:
            now = time.time()
            print(table(_HEADER, [_row(each, now) for each in found]))


def _row(each: ListedDeadLetter, now: float) -> tuple[str, ...]:
    age = max(0.0, now - stream_ids.milliseconds(each.dead) / 1000)
    return (
        each.dead,
        format_duration(age),
        each.session or "-",
        each.reason,
        format_bytes(each.size),
        each.detail,
    )
