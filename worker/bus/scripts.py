"""The Lua scripts, each beside its sha1, sent by sha."""

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
        """Run the script, loading it if the server does not know it yet."""
        while True:
            try:
                return await redis.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:
                await self.load(redis)  # which a restart may make it forget before we come back

    async def load(self, redis: Redis) -> None:
        """Make the server know the script."""
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
