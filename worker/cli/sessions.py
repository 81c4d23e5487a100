"""`turnbus sessions`: list the sessions with their owner, state and lag."""

import time
from argparse import Namespace
from functools import partial

import msgspec

from schemas import Keys
from worker.bus.inspection import SessionStatus, list_sessions
from worker.cli.command import Subparsers, add_command, add_config, read_settings, run_async
from worker.cli.redis import open_redis
from worker.cli.table import format_bytes, format_duration, table
from worker.settings import Settings

_HEADER = ("SESSION", "LANE", "OWNER", "STATE", "LAG", "BYTES", "TURNS", "LAST EVENT")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "sessions",
        run,
        about="List the live sessions, oldest first: lane, owner, state, audio that no published\n"
        "event covers yet (its length, and its approximate size in bytes), turns begun and last\n"
        "event.\n\n"
        "States: waiting (no worker has it), handed_over (released, not taken yet), silent (no\n"
        "heartbeat from its owner for a lease), unconnected (its owner reported that it gets no\n"
        "connection to the provider, and nothing since), in_turn, between_turns.",
        examples="""
turnbus sessions
turnbus sessions --json | jq -r 'select(.lag_s > 10) | .session'""",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line per session")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """List the sessions."""
    found = run_async(partial(_ask, read_settings(arguments)))
    if arguments.json:
        for status in found:
            print(msgspec.json.encode(status).decode())
    else:
        now = time.time()
        print(table(_HEADER, [_row(status, now) for status in found]))
    return 0


async def _ask(settings: Settings) -> list[SessionStatus]:
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
