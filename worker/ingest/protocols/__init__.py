"""The wires of producers: one pure parser for each, from messages to records.

A server builds a parser for each WebSocket, from the request's query and the subprotocols that the
producer offers. It passes every message to the parser, and the records that come back to the call.
A parser remembers no audio except an incomplete sample, so its memory is bounded by its messages.
"""

import typing
from collections.abc import Mapping, Sequence

from worker.ingest.records import CallInput

Query = Mapping[str, Sequence[str]]
"""Parameters of a URL; each has a list of values."""


class Protocol(typing.Protocol):
    """Parser of one WebSocket's messages.

    Both methods raise `ProtocolError`. The first record is `Started`, except that a call without
    audio may consist of `Ended` alone. Nothing follows `Ended`.
    """

    @property
    def subprotocol(self) -> str | None:
        """The offered subprotocol that the server accepts; None to accept none."""

    def text(self, message: str) -> Sequence[CallInput]:
        """Parse a text message."""

    def binary(self, message: bytes) -> Sequence[CallInput]:
        """Parse a binary message."""
