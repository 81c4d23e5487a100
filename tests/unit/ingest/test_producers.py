"""A producer's socket: how it ends, and what that means for its call."""

from collections.abc import Callable, Sequence
from typing import cast

import pytest
from redis.asyncio import Redis

from schemas import Encoding, Keys, SessionEntry
from worker.ingest.calls import Call, CallLimits, Calls
from worker.ingest.counters import IngestCounters
from worker.ingest.http import WebSocket, WebSocketClosedError
from worker.ingest.producers import read_producer
from worker.ingest.records import CallInput, Ended, ProtocolError, Started

STARTED = Started((SessionEntry(session="call-1", encoding=Encoding.PCM_MULAW, sample_rate=8_000),))


class Socket:
    """Returns messages, and raises the exception that ends them."""

    def __init__(self, *messages: str | BaseException) -> None:
        self._messages = [*messages]
        self.closed: tuple[int, str] | None = None

    async def receive(self) -> str:
        message = self._messages.pop(0)
        if isinstance(message, BaseException):
            raise message
        return message

    async def consume(self, take: Callable[[str | bytes], bool]) -> None:
        while take(await self.receive()):
            pass

    async def close(self, code: int, reason: str = "") -> None:
        self.closed = (code, reason)


class Parser:
    """Knows three messages."""

    subprotocol: str | None = None

    def text(self, message: str) -> Sequence[CallInput]:
        match message:
            case "start":
                return (STARTED,)
            case "stop":
                return (Ended(),)
            case "bad":
                raise ProtocolError("a message is wrong", 1003)
        raise RuntimeError("a bug of the parser")

    def binary(self, message: bytes) -> Sequence[CallInput]:
        raise NotImplementedError


class WatchedCalls(Calls):
    """Calls that the test can see."""

    opened: Call | None = None

    def open(self, started: Started, protocol: str = "raw") -> Call:
        self.opened = super().open(started, protocol)
        return self.opened


async def ended(*messages: str | BaseException, max_calls: int = 5) -> tuple[Socket, str, bool]:
    """Read messages; return the socket, the end of the call, and whether its producer ended it.

    The end is its reason, `waits` if the call waits for its producer, and empty without a call.
    """
    socket = Socket(*messages)
    limits = CallLimits(grace_s=600.0, max_calls=max_calls)
    async with Redis() as redis, WatchedCalls(redis, Keys(), limits, IngestCounters()) as calls:
        by_producer = await read_producer(cast("WebSocket", socket), Parser(), "twilio", calls)
        call = calls.opened
        end = "" if call is None else "waits" if call.waits_for_return else call.end_reason
    return socket, end, by_producer


@pytest.mark.parametrize(
    ("messages", "end", "by_producer"),
    [
        (["start", "stop"], "ended", True),
        (["stop"], "", True),
        (["start", WebSocketClosedError(1000, clean=True)], "closed", False),
        (["start", WebSocketClosedError(1001, clean=True)], "closed", False),
        (["start", WebSocketClosedError(1005, clean=True)], "closed", False),
        (["start", WebSocketClosedError(1011, clean=True)], "waits", False),
        (["start", WebSocketClosedError(1006, clean=False)], "waits", False),
        ([WebSocketClosedError(1006, clean=False)], "", False),
        (["start", "bad"], "waits", False),
        (["bad"], "", False),
    ],
)
async def test_end_of_the_socket_ends_the_call(
    messages: Sequence[str | BaseException], end: str, by_producer: bool
) -> None:
    assert (await ended(*messages))[1:] == (end, by_producer)


async def test_bad_message_closes_with_its_code_and_reason() -> None:
    socket, _, _ = await ended("start", "bad")
    assert socket.closed == (1003, "a message is wrong")


async def test_refused_call_closes_with_the_reason() -> None:
    socket, end, _ = await ended("start", max_calls=0)
    assert socket.closed is not None
    assert socket.closed[0] == 1013
    assert "maximum of 0 calls" in socket.closed[1]
    assert end == ""


async def test_internal_error_leaves_the_call_to_its_grace() -> None:
    socket = cast("WebSocket", Socket("start", "unknown"))
    limits = CallLimits(grace_s=600.0)
    async with Redis() as redis, Calls(redis, Keys(), limits, IngestCounters()) as calls:
        with pytest.raises(RuntimeError):
            await read_producer(socket, Parser(), "twilio", calls)
        # It would be refused if the socket still counted as live.
        assert not calls.open(STARTED, "twilio").waits_for_return
