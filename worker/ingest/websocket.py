"""The WebSocket of a producer, as its handler sees it."""

from collections.abc import Callable
from typing import Final

import anyio
from websockets.frames import CloseCode
from websockets.protocol import State

from worker.ingest.connection import Connection

MAX_REASON_BYTES: Final = 123
"""Maximum size of a close reason (RFC 6455, section 5.5)."""


class WebSocketClosedError(Exception):
    """The WebSocket is closed.

    `code` is the peer's close code; without one it is the code that was sent, else 1006. `clean`
    is whether the peer sent a close frame.
    """

    def __init__(self, code: int, clean: bool) -> None:
        super().__init__(f"closed with {code}" if clean else f"lost ({code})")
        self.code = code
        self.clean = clean


class WebSocket:
    """Whole messages of one accepted connection.

    Messages are received while the handler works. The handler must not block: above
    `Limits.queue_bytes` of waiting messages the connection is not read, and some producers hang up.
    """

    def __init__(self, connection: Connection, close_timeout_s: float) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._close_timeout_s = close_timeout_s

    async def receive(self) -> str | bytes:
        """Return the next message: text as str, binary as bytes.

        Messages that came before the end are returned before `WebSocketClosedError` is raised.
        """
        while not self._connection.inbox:
            self._raise_if_closed()
            await self._connection.changed()
        return self._connection.take()

    async def consume(self, take: Callable[[str | bytes], bool]) -> None:
        """Pass each message to `take` as it arrives, until it returns False, or raises.

        `take` runs in the callback of the connection, not in this task: a task that wakes up for
        each message costs more than the message. Raises as `receive` does, and what `take` raises.
        """
        connection = self._connection
        outcome: list[Exception | None] = []

        def consume_waiting() -> None:
            try:
                while connection.inbox and not outcome:
                    if not take(connection.take()):
                        outcome.append(None)
            except Exception as error:  # noqa: BLE001 - raised in the task below
                outcome.append(error)
            if outcome:
                connection.consumer = None

        connection.consumer = consume_waiting
        try:
            consume_waiting()
            while not outcome:
                self._raise_if_closed()
                await connection.changed()
        finally:
            connection.consumer = None
        if outcome[0] is not None:
            raise outcome[0]

    async def send(self, message: str | bytes) -> None:
        """Send a message. Raises `WebSocketClosedError`; a peer that does not read is dropped."""
        self._raise_if_closed()
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._connection.flush()
        await self._connection.drained()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Send a close frame and wait for the peer's, a short time. A closed one stays closed."""
        if self._protocol.state is State.OPEN:
            short = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
            self._protocol.send_close(code, short)
            self._connection.flush()
        with anyio.move_on_after(self._close_timeout_s):
            while not self._connection.is_lost:
                self._connection.discard_messages()
                await self._connection.changed()
        self._connection.discard_messages()
        if not self._connection.is_lost:
            self._connection.abort()

    def _raise_if_closed(self) -> None:
        if self._protocol.state is State.OPEN and not self._connection.is_lost:
            return
        received, sent = self._protocol.close_rcvd, self._protocol.close_sent
        if received is not None:
            raise WebSocketClosedError(received.code, clean=True)
        raise WebSocketClosedError(sent.code if sent else CloseCode.ABNORMAL_CLOSURE, clean=False)
