"""`turnbus dead`: list dead letters, and announce one again."""

import re
import time
from argparse import ArgumentTypeError, Namespace
from functools import partial

import msgspec

from schemas import Keys
from worker.bus.dead_letters import ListedDeadLetter, list_dead_letters, requeue
from worker.cli.command import Subparsers, add_command, add_config, read_settings, run_async
from worker.cli.redis import open_redis
from worker.cli.table import format_bytes, format_duration, table
from worker.core import stream_ids
from worker.settings import Settings

_HEADER = ("ID", "AGE", "SESSION", "REASON", "SIZE", "DETAIL")


class Requeued(msgspec.Struct, frozen=True):
    """A session that was announced again."""

    dead: str
    """Entry id on the dead-letter stream."""
    entry: str
    """Entry id on the sessions stream."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "dead",
        run,
        about="List the entries that workers rejected, oldest first, with the reasons. Session\n"
        "entries are kept, audio never. After its cause is fixed, a session entry can be\n"
        "announced again, except if the provider rejected it: that session is over. Exit code 1\n"
        "if the entry would only be rejected again.",
        examples="""
turnbus dead
turnbus dead --json | jq -r 'select(.reason == "unusable") | .dead'
turnbus dead --requeue 1767225600000-0""",
    )
    parser.add_argument(
        "--requeue", metavar="ID", type=_entry_id, help="announce this session again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """List the dead letters, or announce one again."""
    settings = read_settings(arguments)
    if arguments.requeue:
        done = run_async(partial(_requeue, settings, arguments.requeue))
        text = f"{done.dead} is announced again as {done.entry}"
        print(msgspec.json.encode(done).decode() if arguments.json else text)
        return 0
    found = run_async(partial(_list, settings))
    if arguments.json:
        for each in found:
            print(msgspec.json.encode(each).decode())
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


def _entry_id(text: str) -> str:
    if not re.fullmatch("[0-9]{1,20}-[0-9]{1,20}", text):
        raise ArgumentTypeError("must be an id of the list, MILLISECONDS-NUMBER")
    return text
