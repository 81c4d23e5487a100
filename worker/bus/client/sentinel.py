"""Redis Sentinel: the address of the current master, resolved for each new connection."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from worker.bus.client.cluster import Address
from worker.bus.fitness import lacks
from worker.urls import join_host_port

log = logging.getLogger(__name__)


class SentinelResolver:
    """Resolves the master's address with the sentinels that monitor it."""

    def __init__(
        self,
        addresses: Sequence[Address],
        master_name: str,
        open_server: Callable[[Address, bool], Redis],
    ) -> None:
        self._addresses = [*addresses]
        self._master_name = master_name
        self._open_server = open_server
        self._master: Address | None = None

    async def master(self) -> Address:
        """Return the master's address from the first sentinel that knows it.

        Raises redis-py's ConnectionError if no sentinel knows it.
        """
        errors = []
        for address in [*self._addresses]:
            try:
                reply = await self._ask(address)
            except (exceptions.RedisError, OSError) as error:
                reason = "it is not a sentinel" if lacks(error) else error
                errors.append(f"{join_host_port(*address)}: {reason}")
                continue
            if reply is None:
                errors.append(f"{join_host_port(*address)} does not know {self._master_name}")
                continue
            # The next connection begins with the sentinel that answered.
            self._addresses.remove(address)
            self._addresses.insert(0, address)
            master = (reply[0].decode(), int(reply[1]))
            if self._master not in {None, master}:
                at = join_host_port(*master)
                log.warning("master of %s changed to %s", self._master_name, at)
            self._master = master
            return master
        raise exceptions.ConnectionError(f"no sentinel knows the master: {'; '.join(errors)}")

    async def _ask(self, address: Address) -> Any:  # noqa: ANN401 - as in the client
        """Ask one sentinel, with Redis's password only if the sentinel requires it."""
        try:
            return await self._query(address, with_password=False)
        except exceptions.AuthenticationError:
            return await self._query(address, with_password=True)

    async def _query(self, address: Address, *, with_password: bool) -> Any:  # noqa: ANN401 - as in the client
        async with self._open_server(address, with_password) as sentinel:
            return await sentinel.execute_command(  # type: ignore[no-untyped-call]
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name
            )
