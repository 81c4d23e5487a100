"""One request of the HTTP port, as its handler and the checks of credentials see it. No I/O."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request as ParsedRequest

_TARGET: Final = re.compile(
    r"(?:(?:https?|wss?)://([^/?#]+))?((?:/[!-~]*|\?[!-~]*)?)", re.IGNORECASE
)


class BadRequestError(Exception):
    """A request that HTTP does not allow; the message says why."""


class Request:
    """One GET request. `target` is path and query as they were sent."""

    def __init__(self, target: str, headers: Headers, peer: str) -> None:
        self.target = target
        self.headers = headers
        self.peer = peer
        """Address of the other side, without its port."""
        self.path = target.partition("?")[0]

    @cached_property
    def query(self) -> Mapping[str, Sequence[str]]:
        """The decoded values of each query parameter, in their order."""
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)


def read_request(parsed: ParsedRequest, peer: str) -> Request:
    """Return a parsed request; a target that is a whole URL becomes path and query.

    Raises `BadRequestError`.
    """
    hosts = parsed.headers.get_all("Host")
    if len(hosts) > 1 or (not hosts and parsed.protocol != "HTTP/1.0"):
        raise BadRequestError("the request must have one Host header")
    if len(parsed.headers.get_all("Last-Event-ID")) > 1:
        raise BadRequestError("the request has more than one Last-Event-ID header")
    found = _TARGET.fullmatch(parsed.path)
    if found is None or not parsed.path:
        raise BadRequestError("the target of the request must be a path or a URL")
    authority, target = found.groups()
    if authority is None and not target.startswith("/"):
        raise BadRequestError("the target of the request must begin with /")
    if authority is not None and [authority.lower()] != [host.lower() for host in hosts]:
        raise BadRequestError("the target and the Host header must name the same host")
    return Request(target if target.startswith("/") else f"/{target}", parsed.headers, peer)
