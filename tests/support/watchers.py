"""Workers that watch each other's liveness, as the servers of the bus see them."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from tests.support.embedded_cluster import execute
from tests.support.polling import eventually

_ASKING = ("pubsub|numsub", "pubsub|shardnumsub")


async def seen_alive(servers: Sequence[Redis], prefix: str, workers: int) -> None:
    """Wait until this many workers run and each sees every other one alive.

    Each worker watches the others over a connection that has no other use.
    """

    async def alive() -> bool:
        found = 0
        for server in servers:
            for channels in ("CHANNELS", "SHARDCHANNELS"):
                found += len(await execute(server, "PUBSUB", channels, f"{prefix}:alive:*"))
        return found == workers

    async def asked() -> dict[tuple[int, str], int]:
        """Return the commands sent over each liveness connection."""
        clients: list[tuple[int, Any]] = [
            (at, each)
            for at, server in enumerate(servers)
            for each in await server.client_list()
            if each["cmd"] in _ASKING
        ]
        return {(at, each["id"]): int(each["tot-cmds"]) for at, each in clients}

    await eventually(alive, f"{workers} workers to be alive")
    before = await asked()

    async def has_asked() -> bool:
        now = await asked()
        return sum(count > before.get(each, 0) for each, count in now.items()) >= workers

    await eventually(has_asked, f"{workers} workers to ask about each other")
