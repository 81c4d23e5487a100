"""The server: connections on any asyncio loop, and the faults of its process.

server = RedisServer(time.time, random.Random(1))
listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
"""

import asyncio
import random
from collections.abc import Callable, Sequence

from tests.simulation.redis.commands import Args
from tests.simulation.redis.connection import Connection
from tests.simulation.redis.dialect import VALKEY_9, Dialect
from tests.simulation.redis.faults import Faults
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import CommandError, Reply
from tests.simulation.redis.scripts import NAMES
from tests.simulation.redis.waiting import WaitingClients

_DEMOTED = (
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
)

Matches = Callable[[Args], bool]
"""Decides by its name and arguments whether a command is meant."""


class RedisServer:
    """A factory of the protocols of its connections."""

    model_type: type[RedisModel] = RedisModel
    connection_type: type[Connection] = Connection

    def __init__(
        self, clock: Callable[[], float], rng: random.Random, dialect: Dialect = VALKEY_9
    ) -> None:
        """`clock` returns the Unix seconds of the server's host."""
        self.model = self.model_type(clock, rng, dialect)
        self.waiting = WaitingClients(self.model)
        self.connections: set[Connection] = set()
        self.channels: dict[bytes, dict[Connection, None]] = {}
        """Subscribers by channel."""
        self.is_up = True
        self._losing: Matches | None = None
        self._last_client_id = 0

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        self._last_client_id += 1
        return self.connection_type(self, self._last_client_id)

    @property
    def faults(self) -> Faults:
        """States in which the server rejects commands."""
        return self.model.faults

    def execute(self, *args: bytes | str | int) -> Reply:
        """Run one command beside the connections, as `RedisModel.execute` does."""
        reply = self.model.execute(*args)
        self.waiting.serve()
        return reply

    def jump_time(self, seconds: float) -> None:
        """Set the server's clock forward or back."""
        self.model.time_offset_s += seconds

    def lose_next_reply(self, matching: Matches = lambda args: True) -> None:
        """Reset the connection of the next such command after it ran, without its reply."""
        self._losing = matching

    def loses_reply(self, args: Args) -> bool:
        """Return whether the reply to this command is lost."""
        if self._losing is None or not self._losing(args):
            return False
        self._losing = None
        return True

    def demote(self) -> None:
        """Make the server a replica. It stays one until `faults.read_only` is false again."""
        self.faults.read_only = True
        self.waiting.interrupt(CommandError(_DEMOTED))

    def kill(self) -> None:
        """End the process: every connection is reset, and each new one too until `restart`."""
        self.is_up = False
        self.disconnect_all()

    def disconnect_all(self) -> None:
        """Reset every connection."""
        for connection in sorted(self.connections, key=lambda each: each.client_id):
            connection.abort()

    def restart(self, lost_writes: int = 0) -> None:
        """Start again with the keys of the log, without its last writes.

        With `lost_writes`, a replica becomes the master that did not have them yet.
        """
        self.kill()
        self.model.restart(lost_writes)
        self.waiting = WaitingClients(self.model)
        self.is_up = True

    def subscribers(self, channel: bytes) -> int:
        """Return the number of subscribers of a channel."""
        return len(self.channels.get(channel, ()))


def calls_script(*names: str) -> Matches:
    """Match calls of turnbus's scripts by their names."""
    return lambda args: script_name(args) in names


def script_name(args: Sequence[bytes]) -> str:
    """Return the name of the script that a command calls; empty if it calls none of turnbus's."""
    return NAMES.get(args[1], "") if args[0] == b"EVALSHA" else ""
