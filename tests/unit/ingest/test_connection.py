"""The timeouts of a connection, without a clock and without a socket."""

import asyncio
from typing import cast

from tests.unit.ingest.transport import Transport
from tests.unit.ingest.wire import UPGRADE
from worker.ingest.connection import Connection
from worker.ingest.limits import Limits

LIMITS = Limits(write_timeout_s=10, close_timeout_s=2, request_timeout_s=5)


def _connection(transport: Transport, sent: bytes = UPGRADE) -> Connection:
    connection = Connection(LIMITS, lambda _: None, lambda _, __: None, lambda _: None)
    connection.connection_made(cast("asyncio.Transport", transport))
    connection.data_received(sent)
    return connection


def _wait(connection: Connection, seconds: int) -> None:
    for _ in range(seconds):
        connection.check(1)


def test_write_without_progress_is_dropped() -> None:
    transport = Transport()
    connection = _connection(transport)
    connection.write(b"x" * 1_000)
    _wait(connection, 10)
    assert not transport.is_closed
    _wait(connection, 2)
    assert transport.is_closed


def test_write_with_progress_goes_on() -> None:
    transport = Transport()
    connection = _connection(transport)
    for _ in range(100):  # more is written than the peer reads
        connection.write(b"x" * 100)
        transport.written -= 10
        connection.check(1)
    assert not transport.is_closed


def test_close_timeout_begins_when_all_is_sent() -> None:
    transport = Transport()
    connection = _connection(transport)
    connection.respond(b"x" * 1_000)
    for _ in range(10):
        transport.written -= 100
        assert not transport.is_closed
        connection.check(1)
    _wait(connection, 1)
    assert not transport.is_closed
    _wait(connection, 2)
    assert transport.is_closed


def test_request_timeout_counts_whole_requests() -> None:
    transport = Transport()
    connection = _connection(transport, UPGRADE[:-4])
    for _ in range(6):
        connection.data_received(b"x")
        connection.check(1)
    assert transport.written > 0, "408 is sent"


def test_lost_connection_has_no_timeouts() -> None:
    transport = Transport()
    connection = _connection(transport)
    connection.write(b"x")
    connection.connection_lost(None)
    _wait(connection, 20)
    assert not transport.is_closed
