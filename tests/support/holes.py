"""Addresses that do not serve: some answer nothing at all, as behind a firewall that drops."""

import errno
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest
from aiohappyeyeballs import AddrInfoType

from worker import network

HOST = "dual.test"
"""A name that is given addresses by `give_addresses`."""

HOLES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Addresses for `black_hole`, beside that of the servers."""

REFUSING = "127.0.0.9"
"""An address where nothing listens."""


@contextmanager
def black_hole(port: int, address: str = HOLES[0]) -> Iterator[None]:
    """Listen at an address, accept nothing, and keep the queue full: connects get no answer."""
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
    """Open one at each port."""
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(black_hole(port))
        yield


def give_addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[str]]:
    """Give names addresses, for connects of this process: add to what is returned.

    uvloop looks names up in C, so the worker's own function is replaced. Other names are looked up.
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
