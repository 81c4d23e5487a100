"""Clients that wait in XREAD or XREADGROUP until a key has data."""

from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.redis.commands import Args, Wait
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import CommandError

if TYPE_CHECKING:
    from tests.simulation.redis.connection import Connection


class _Waiting(NamedTuple):
    args: Args
    wait: Wait


class WaitingClients:
    """Which connection waits for which keys, in the order in which they began to."""

    def __init__(self, model: RedisModel) -> None:
        self._model = model
        self._waiting: dict[Connection, _Waiting] = {}
        self._by_key: dict[bytes, dict[Connection, None]] = {}
        model.db.awaited = self._by_key

    def add(self, connection: "Connection", args: Args, wait: Wait) -> None:
        """Let a connection wait."""
        self._waiting[connection] = _Waiting(args, wait)
        for key in wait.keys:
            self._by_key.setdefault(key, {})[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Let a connection wait no more."""
        waiting = self._waiting.pop(connection, None)
        if waiting is None:
            return
        for key in {*waiting.wait.keys}:
            clients = self._by_key[key]
            del clients[connection]
            if not clients:
                del self._by_key[key]

    def interrupt(self, error: CommandError) -> None:
        """Reply to every waiting client with an error, and close its connection."""
        for connection in [*self._waiting]:
            connection.interrupt(error)

    def first_keys(self) -> list[tuple["Connection", bytes]]:
        """Return the waiting connections, and the first key of each."""
        return [(connection, each.wait.keys[0]) for connection, each in self._waiting.items()]

    def __len__(self) -> int:
        return len(self._waiting)

    def serve(self) -> None:
        """Reply to those whose keys changed, oldest first."""
        ready = self._model.db.ready
        while ready:
            key = next(iter(ready))
            del ready[key]
            for connection in [*self._by_key.get(key, ())]:
                args, wait = self._waiting[connection]
                reply = connection.resume(args, wait)
                if reply is not None:
                    connection.end_wait(reply)
