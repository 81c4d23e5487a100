"""The Lua scripts, which are sent by their SHA-1."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_LUA = Path(__file__).parent / "lua"
Arg = str | bytes | int | float


class Script:
    """One script of `lua/`; its header comment documents KEYS, ARGV and the reply."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Arg]) -> Any:  # noqa: ANN401 - each script's own reply
        """Run the script, and load it first if the server does not have it."""
        while True:
            try:
                return await redis.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:
                await self.load(redis)  # a restart may drop it again before the next call

    async def load(self, redis: Redis) -> None:
        """Load the script into the server."""
        await redis.script_load(self.text)


CLAIM = Script("claim")
COMMIT = Script("commit")
HEARTBEAT = Script("heartbeat")
TAKE_OVER = Script("adopt")
RAISE_DELIVERY_COUNT = Script("outbid")
RESTORE_ENTRY = Script("put_back")
RELEASE = Script("release")
REJECT = Script("refuse")
REQUEST_PERMIT = Script("gate")
RELEASE_PERMIT = Script("gate_leave")
DELETE_CONSUMER = Script("retire")
DELETE_RECORD = Script("forget")
SWEEP = Script("sweep")
COMPLETE = Script("settle")
WRITE = Script("write")
