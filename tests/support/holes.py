"""Addresses that do not accept connections, such as those behind a firewall that drops packets."""

import errno
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest
from aiohappyeyeballs import AddrInfoType

from worker import network

HOST = "dual.test"
"""Host name to which `give_addresses` gives addresses."""

HOLES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Addresses for `black_hole`, beside that of the servers."""

REFUSING = "127.0.0.9"
"""Address on which nothing listens."""


@contextmanager
def black_hole(port: int, address: str = HOLES[0]) -> Iterator[None]:
    """Listen at an address without accepting, and keep the queue full: connects time out."""
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, port), family=family, backlog=0)
        listener = stack.enter_context(server)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(family))
            waiting.settimeout(0)
            assert waiting.connect_ex(listener.getsockname()) in {0, errno.EINPROGRESS}
        yield


@asynccontextmanager
async def black_holes(*ports: int) -> AsyncIterator[None]:
    """Open one unresponsive listener at each port."""
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(black_hole(port))
        yield


def give_addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[str]]:
    """Resolve names to given addresses for connects of this process; add to the returned dict.

    uvloop resolves names in C, so the worker's own function is replaced. Other names are resolved
    as usual.
    """
    names: dict[str, Sequence[str]] = {}
    look_up = network._resolve

    async def resolve(host: str, port: int) -> Sequence[AddrInfoType]:
        if host not in names:
            return await look_up(host, port)
        if not names[host]:
            raise socket.gaierror(socket.EAI_NONAME, f"{host}: Name or service not known")
        return [address for name in names[host] for address in await look_up(name, port)]

    monkeypatch.setattr(network, "_resolve", resolve)
    return names
