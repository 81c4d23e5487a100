"""Shares the writes to Redis among all calls: one write for the appends of several milliseconds."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from worker.bus.client.cluster import ClusterClient

GATHER_S = 0.005
"""Minimum time between two writes; the first append after a pause does not wait."""

Fields = dict[Any, Any]  # redis-py's field type is invariant


class _Append:
    """The entries of one stream that are appended all or none, and the outcome."""

    def __init__(self, stream: str, batch: Sequence[Fields], *, nomkstream: bool) -> None:
        self._stream = stream
        self._batch = batch
        self._nomkstream = nomkstream
        self.done = anyio.Event()
        self.outcome: list[Any] | Exception = []

    def add_to(self, pipe: "Pipeline") -> None:
        """Add the commands. A Redis that gets full must not take a later entry: a transaction.

        redis-py's own transactions put the command into each error in place of Redis's text.
        """
        if len(self._batch) > 1:
            pipe.execute_command("MULTI")
        for at, fields in enumerate(self._batch):
            pipe.xadd(self._stream, fields, nomkstream=self._nomkstream or at > 0)
        if len(self._batch) > 1:
            pipe.execute_command("EXEC")

    def take_from(self, replies: Iterator[Any]) -> None:
        """Set the outcome from the replies to the commands."""
        if len(self._batch) > 1:
            *queued, done = islice(replies, len(self._batch) + 2)
            # What Redis did not queue explains why it did not execute.
            added = [*queued, *(done if isinstance(done, list) else [done])]
        else:
            added = [next(replies)]
        errors = [each for each in added if isinstance(each, Exception)]
        self.finish(errors[0] if errors else added[-len(self._batch) :])

    def finish(self, outcome: list[Any] | Exception) -> None:
        """Pass the outcome to the task that waits for it."""
        self.outcome = outcome
        self.done.set()


class AppendPipeline:
    """Appends to many streams. Those that wait at the same time are sent together."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[_Append] = []
        self._arrived = anyio.Event()

    async def append(self, stream: str, batch: Sequence[Fields], *, nomkstream: bool) -> list[Any]:
        """Append entries, all or none; return their ids, None each if the stream does not exist."""
        append = _Append(stream, batch, nomkstream=nomkstream)
        if len(batch) > 1 and isinstance(self._redis, ClusterClient):
            # A pipeline over several nodes cannot hold a transaction.
            await self._send(await self._redis.node_for(stream), [append])
        else:
            self._waiting.append(append)
            self._arrived.set()
            await append.done.wait()
        if isinstance(append.outcome, Exception):
            raise append.outcome
        return append.outcome

    async def run(self) -> None:
        """Send the appends, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._arrived.wait()
                self._arrived = anyio.Event()
                appends, self._waiting = self._waiting, []
                tasks.start_soon(self._send, self._redis, appends)
                await anyio.sleep(GATHER_S)

    async def _send(self, redis: Redis, appends: Sequence[_Append]) -> None:
        try:
            async with redis.pipeline(transaction=False) as pipe:
                for append in appends:
                    append.add_to(pipe)
                replies = iter(await pipe.execute(raise_on_error=False))
            for append in appends:
                append.take_from(replies)
        except (RedisError, OSError) as error:
            for append in appends:
                append.finish(error)
        except Exception as error:  # noqa: BLE001 - raised by `append`
            if len(appends) == 1:
                appends[0].finish(error)
                return
            # Only the append that is at fault fails again; the others may be repeated.
            for append in appends:
                await self._send(redis, [append])
