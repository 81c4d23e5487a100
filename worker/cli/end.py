"""`turnbus end`: end one session, as its producer would."""

from argparse import Namespace
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas import Keys
from schemas.audio import SessionId
from worker.bus.inspection import announced
from worker.cli.command import (
    Subparsers,
    add_command,
    add_config,
    argument_type,
    read_settings,
    run_async,
)
from worker.cli.redis import open_redis
from worker.errors import NotFoundError
from worker.settings import Settings


class Appended(msgspec.Struct, frozen=True):
    """The `end` that was appended."""

    session: str
    lane: str
    entry: str
    """Entry id on the session's audio stream."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "end",
        run,
        about="End a session as its producer would: append `end` to its audio. The worker still\n"
        "transcribes the earlier audio, then publishes session.ended. Exit code 1 if there is no\n"
        "such session, or if it is over.",
        examples="turnbus end call-1\nturnbus end call-1 --json",
    )
    parser.add_argument(
        "session",
        metavar="SESSION",
        type=argument_type(SessionId, "1 to 128 of A-Z a-z 0-9 . _ : -"),
        help="its id",
    )
    parser.add_argument("--json", action="store_true", help="print what was appended as JSON")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """End the session."""
    appended = run_async(partial(_end, read_settings(arguments), arguments.session))
    if arguments.json:
        print(msgspec.json.encode(appended).decode())
    else:
        print(f"{appended.session}: appended `end`; the last event will be session.ended")
    return 0


async def _end(settings: Settings, session: str) -> Appended:
    keys = Keys(settings.prefix)
    async with open_redis(settings) as redis:
        lane = await _lane_of(redis, keys, session)
        try:
            entry: Any = await redis.xadd(keys.audio(lane, session), {"end": "1"})
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise NotFoundError(f"{session} is over") from None
    return Appended(session, lane, entry.decode())


async def _lane_of(redis: Redis, keys: Keys, session: str) -> str:
    """Return the lane of a live session.

    Raises `NotFoundError` if the session is over or was never announced.
    """
    async for each in announced(redis, keys):
        if each.session == session:
            return each.lane
    known: Any = await redis.smembers(keys.lanes)
    for lane in sorted({lane.decode() for lane in known} | {"0"}):
        if await redis.hget(keys.state(lane, session), "status") is not None:
            raise NotFoundError(f"{session} is over")
    raise NotFoundError(f"there is no session {session}")
