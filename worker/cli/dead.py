"""`turnbus dead`: list dead letters, and announce one again."""

import os
import time
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas import Keys
from worker.bus.dead_letters import ListedDeadLetter, list_dead_letters, requeue
from worker.cli.command import Command, Config, Option, print_json, run_async
from worker.cli.redis import open_redis
from worker.cli.table import format_bytes, format_duration, table
from worker.core import stream_ids
from worker.settings import Settings, load

EntryId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,20}-[0-9]{1,20}\Z",
        description="an id of the list, MILLISECONDS-NUMBER",
    ),
]
_HEADER = ("ID", "AGE", "SESSION", "REASON", "SIZE", "DETAIL")


class Requeued(msgspec.Struct, frozen=True):
    """A session that was announced again."""

    dead: str
    """Entry id on the dead-letter stream."""
    entry: str
    """Entry id on the sessions stream."""


class Dead(Command):
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
    config: Config = None

    def run(self) -> int:
        """List the dead letters, or announce one again."""
        settings = load(os.environ, self.config)
        if self.requeue:
            done = run_async(partial(_requeue, settings, self.requeue))
            if self.json:
                print_json(done)
            else:
                print(f"{done.dead} is announced again as {done.entry}")
            return 0
        found = run_async(partial(_list, settings))
        if self.json:
            for each in found:
                print_json(each)
        else:
            now = time.time()
            print(table(_HEADER, [_row(each, now) for each in found]))
        return 0


async def _list(settings: Settings) -> list[ListedDeadLetter]:
    async with open_redis(settings) as redis:
        return [each async for each in list_dead_letters(redis, Keys(settings.prefix))]


async def _requeue(settings: Settings, dead: str) -> Requeued:
    async with open_redis(settings) as redis:
        return Requeued(dead, await requeue(redis, Keys(settings.prefix), dead))


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
