"""A producer's WebSocket: its messages become the records of a call."""

import logging
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from websockets.frames import CloseCode

from worker.ingest.calls import Call, CallRefusedError, Calls
from worker.ingest.http import WebSocket, WebSocketClosedError
from worker.ingest.protocols import Protocol
from worker.ingest.records import CallInput, Ended, ProtocolError, Started

log = logging.getLogger(__name__)

_GOODBYES = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD})
"""Close codes by which a producer, or a page that is closed, ends its call."""


async def read_producer(
    socket: WebSocket, parser: Protocol, protocol: str, calls: Calls, call: Call | None = None
) -> bool:
    """Feed a call with the messages of its socket; return whether the producer ended the call.

    `call` is set if the request named the sessions; otherwise the first message does. After an
    invalid message the socket is closed, and the call waits for its producer to return.
    """
    try:
        while call is None:
            for record in _parse(parser, await socket.receive()):
                call = _take(record, protocol, calls, call)
                if isinstance(record, Ended):
                    return True
        await socket.consume(partial(_feed, call, parser))
    except WebSocketClosedError as closed:
        if call is not None:
            call.disconnected(clean=closed.clean and closed.code in _GOODBYES)
    except ProtocolError as error:
        name = call.name if call is not None else "without a session"
        log.warning("call %s: its socket is closed for an invalid message: %s", name, error)
        _lose(call)
        await socket.close(error.close_code, str(error))
    except CallRefusedError as error:
        is_full = error.status == HTTPStatus.SERVICE_UNAVAILABLE
        code = CloseCode.TRY_AGAIN_LATER if is_full else CloseCode.POLICY_VIOLATION
        await socket.close(code, str(error))
    except BaseException:  # the end of the process, or an internal error
        _lose(call)
        raise
    else:
        return True
    return False


def _feed(call: Call, parser: Protocol, message: str | bytes) -> bool:
    """Feed a call with a message; return whether the call goes on."""
    for record in _parse(parser, message):
        if not isinstance(record, Started):  # repeated: the request named the sessions
            call.feed(record)
        if isinstance(record, Ended):
            return False
    return True


def _parse(parser: Protocol, message: str | bytes) -> Sequence[CallInput]:
    if isinstance(message, str):
        return parser.text(message)
    return parser.binary(message)


def _take(record: CallInput, protocol: str, calls: Calls, call: Call | None) -> Call | None:
    if isinstance(record, Started):
        return call or calls.open(record, protocol)
    if call is not None:  # otherwise the producer ends before it has said anything
        call.feed(record)
    return call


def _lose(call: Call | None) -> None:
    if call is not None:
        call.disconnected(clean=False)
