"""`turnbus end`: end one session, as its producer would."""

import os
from functools import partial
from typing import Annotated, Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas import Keys
from schemas.audio import SessionId
from worker.bus.inspection import announced
from worker.cli.command import Argument, Command, Config, Option, print_json, run_async
from worker.cli.redis import open_redis
from worker.errors import NotFoundError
from worker.settings import Settings, load


class Appended(msgspec.Struct, frozen=True):
    """The `end` that was appended."""

    session: str
    lane: str
    entry: str
    """Entry id on the session's audio stream."""


class End(Command):
    """End a session as its producer would: append `end` to its audio.

    The worker still transcribes the earlier audio, then publishes session.ended. Exit code 1 if
    there is no such session, or if it is over.

    examples:
      turnbus end call-1
      turnbus end call-1 --json
    """

    session: Annotated[SessionId, Argument("its id", "SESSION")]
    json: Annotated[bool, Option("print what was appended as JSON")] = False
    config: Config = None

    def run(self) -> int:
        """End the session."""
        appended = run_async(partial(_end, load(os.environ, self.config), self.session))
        if self.json:
            print_json(appended)
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
