"""`turnbus end`: end one session, as its producer would."""

from typing import Annotated, Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas import Keys
from schemas.audio import SessionId
from worker.bus.inspection import announced
from worker.cli.bus import BusCommand
from worker.cli.command import Argument, print_json
from worker.errors import TurnbusError
from worker.settings import Settings


class End(BusCommand):
    """End a session as its producer would: append `end` to its audio.

    The worker still transcribes the earlier audio, then publishes session.ended. Exit code 1 if
    there is no such session, or if it is over.

    examples:
      turnbus end call-1
      turnbus end call-1 --json
    """

    session: Annotated[SessionId, Argument("its id", "SESSION")]

    async def use(self, redis: Redis, settings: Settings) -> None:
        """End the session."""
        keys = Keys(settings.prefix)
        lane = await _lane_of(redis, keys, self.session)
        try:
            entry: Any = await redis.xadd(keys.audio(lane, self.session), {"end": "1"})
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise TurnbusError(f"{self.session} is over") from None
        if self.json:
            print_json({"session": self.session, "lane": lane, "entry": entry.decode()})
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
