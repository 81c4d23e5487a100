"""Arbitrary bytes against the HTTP port: a documented answer or a close, and the next is served."""

import asyncio
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.ingest.transport import Transport
from tests.unit.ingest.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    GET,
    PING,
    TEXT,
    UPGRADE,
    answer_ok,
    echo,
    frame,
    status,
)
from worker.ingest.connection import Connection
from worker.ingest.http import Exchange, Limits, serve_http

LIMITS = Limits(max_message_bytes=200, max_request_bytes=2_000, queue_bytes=1_000, max_unanswered=4)

STATUSES = {101, 200, 400, 405, 414, 426, 431, 505}
"""What the peer of a fuzzed request may get."""


async def _handle(exchange: Exchange) -> None:
    await (echo if exchange.request.path == "/raw" else answer_ok)(exchange)


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    with (
        start_blocking_portal("asyncio", {"use_uvloop": request.param}) as portal,
        portal.wrap_async_context_manager(serve_http("127.0.0.1", 0, _handle, LIMITS)) as port,
    ):
        yield port
    logging.getLogger().removeHandler(handler)
    assert errors == []


def _talk(port: int, parts: list[bytes]) -> bytes:
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        with suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while data := client.recv(65_536):
                received += data
    return received


def _opcodes(frames: bytes) -> list[int]:
    """Return the opcodes of the server's frames, which are whole and not masked."""
    found = []
    while frames:
        assert frames[0] & 0xF0 == 0x80, "each frame is a whole message"
        found.append(frames[0] & 0x0F)
        size, head = frames[1], 2
        if size == 126:
            (size,), head = struct.unpack("!H", frames[2:4]), 4
        assert size <= LIMITS.max_message_bytes
        frames = frames[head + size :]
    return found


frames = st.builds(
    frame,
    st.sampled_from([TEXT, BINARY, CONTINUATION, PING, CLOSE, 3]),
    st.binary(max_size=260),
    fin=st.sampled_from([True, True, False]),
    masked=st.sampled_from([True, True, True, False]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Return what a peer sends, in parts: noise, or a valid conversation with some changes."""
    head = draw(st.sampled_from([GET, UPGRADE, UPGRADE, b""]))
    parts = [head, *draw(st.lists(st.one_of(frames, st.binary(max_size=60)), max_size=8))]
    for _ in range(draw(st.integers(0, 3))):
        which = draw(st.integers(0, len(parts) - 1))
        place = draw(st.integers(0, len(parts[which])))
        change = draw(st.binary(max_size=3))
        kept = place + draw(st.integers(0, 3))
        parts[which] = parts[which][:place] + change + parts[which][kept:]
    if draw(st.booleans()):
        joined = b"".join(parts)
        cuts = sorted(draw(st.lists(st.integers(0, len(joined)), max_size=6)))
        parts = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    return parts


@given(conversations())
@settings(max_examples=150)
@example([UPGRADE, frame(TEXT, b"a", fin=False), frame(CLOSE)])
@example([b"\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nA: b\r\n" * 100])
def test_any_bytes_get_a_documented_answer(port: int, parts: list[bytes]) -> None:
    answer = _talk(port, parts)
    if answer:
        assert status(answer) in STATUSES
        head, _, rest = answer.partition(b"\r\n\r\n")
        if status(answer) == 101:
            assert {TEXT, BINARY, CLOSE, 10} >= set(_opcodes(rest))
        assert b"Connection: " in head
    assert status(_talk(port, [GET])) == 200


@given(conversations(), st.booleans())
def test_any_bytes_take_bounded_memory(parts: list[bytes], takes: bool) -> None:
    def accept(connection: Connection, parsed: object) -> None:
        if b"Upgrade" in b"".join(parts):
            response = connection.protocol.accept(parsed)  # type: ignore[arg-type]
            if response.status_code == 101:
                connection.protocol.send_response(response)
                connection.upgraded()

    transport = Transport()
    connection = Connection(LIMITS, lambda _: None, accept, lambda _: None)
    connection.connection_made(cast("asyncio.Transport", transport))
    for part in parts * 20:
        if transport.is_reading and not transport.is_closed:
            connection.data_received(part)
        while takes and connection.inbox:
            connection.take()
        largest = max(map(len, parts))
        held = len(connection.protocol.reader.buffer) + connection.inbox.waiting_bytes
        assert held <= LIMITS.max_request_bytes + LIMITS.queue_bytes + 40 * largest
        connection.check(0.01)
    connection.connection_lost(None)
    assert connection.is_lost
