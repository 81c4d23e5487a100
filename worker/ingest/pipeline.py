"""Shares the writes to Redis among all calls: one write for the appends of several milliseconds."""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import anyio
from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import MAX_WIRES
from worker.bus.client.wire import Wires

GATHER_S = 0.005
"""Minimum time between two writes; the first append after a pause does not wait."""

Fields = dict[Any, Any]  # redis-py's field type is invariant
Command = tuple[Any, ...]


class _Append:
    """The entries of one stream that are appended all or none, and the outcome."""

    def __init__(self, stream: str, batch: Sequence[Fields], *, nomkstream: bool) -> None:
        self._size = len(batch)
        self.commands = _commands(stream, batch, nomkstream=nomkstream)
        self.done = anyio.Event()
        self.outcome: list[Any] | Exception = []

    def take(self, replies: Sequence[Any]) -> None:
        """Set the outcome from the replies to the commands."""
        *queued, done = replies
        # What Redis did not queue explains why it did not execute.
        added = [*queued, *(done if isinstance(done, list) else [done])]
        errors = [each for each in added if isinstance(each, Exception)]
        self.finish(errors[0] if errors else added[-self._size :])

    def finish(self, outcome: list[Any] | Exception) -> None:
        """Pass the outcome to the task that waits for it."""
        self.outcome = outcome
        self.done.set()


class AppendPipeline:
    """Appends to many streams. Those that wait at the same time are sent together."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._wires = None if isinstance(redis, ClusterClient) else Wires(redis)
        self._free_wires = anyio.Semaphore(MAX_WIRES - 1)
        self._waiting: list[_Append] = []
        self._arrived = anyio.Event()

    async def append(self, stream: str, batch: Sequence[Fields], *, nomkstream: bool) -> list[Any]:
        """Append entries, all or none; return their ids, None each if the stream does not exist."""
        append = _Append(stream, batch, nomkstream=nomkstream)
        if len(batch) > 1 and isinstance(self._redis, ClusterClient):
            # A pipeline over several nodes cannot hold a transaction.
            await self._send([append], await self._redis.node_for(stream))
        else:
            self._waiting.append(append)
            self._arrived.set()
            await append.done.wait()
        if isinstance(append.outcome, Exception):
            raise append.outcome
        return append.outcome

    async def run(self) -> None:
        """Send the appends, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    await self._arrived.wait()
                    if self._wires is not None:
                        # What arrives while all wires wait for a slow Redis is sent together.
                        await self._free_wires.acquire()
                    self._arrived = anyio.Event()
                    appends, self._waiting = self._waiting, []
                    tasks.start_soon(self._send_shared, appends)
                    await anyio.sleep(GATHER_S)
        finally:
            if self._wires is not None:
                self._wires.close()

    async def _send_shared(self, appends: Sequence[_Append]) -> None:
        try:
            await self._send(appends, self._redis)
        finally:
            if self._wires is not None:
                self._free_wires.release()

    async def _send(self, appends: Sequence[_Append], redis: Redis) -> None:
        try:
            commands = [each for append in appends for each in append.commands]
            replies = iter(await self._exchange(commands, redis))
            for append in appends:
                append.take([*islice(replies, len(append.commands))])
        except (RedisError, OSError) as error:
            for append in appends:
                append.finish(error)
        except Exception as error:  # noqa: BLE001 - raised by `append`
            if len(appends) == 1:
                appends[0].finish(error)
                return
            # Only the append that is at fault fails again; the others may be repeated.
            for append in appends:
                await self._send([append], redis)

    async def _exchange(self, commands: Sequence[Command], redis: Redis) -> list[Any]:
        """Return the replies and errors of commands."""
        if self._wires is not None:
            return await self._wires.exchange(b"".join(map(pack_command, commands)), len(commands))
        async with redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


def _commands(stream: str, batch: Sequence[Fields], *, nomkstream: bool) -> list[Command]:
    """Return the commands of an append.

    Several entries are a transaction: a Redis that gets full must not take a later one. redis-py's
    own transactions put the command into each error in place of Redis's text.
    """
    appends: list[Command] = [
        (
            *("XADD", stream, *(("NOMKSTREAM",) if nomkstream or at > 0 else ()), "*"),
            *chain.from_iterable(fields.items()),
        )
        for at, fields in enumerate(batch)
    ]
    return [("MULTI",), *appends, ("EXEC",)] if len(batch) > 1 else appends
