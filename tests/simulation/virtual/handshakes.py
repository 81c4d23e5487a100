"""How a connection opens: a packet to the server, its answer, and the client's answer to that.

A packet without an answer is sent again after 1, 2, 4, ... seconds, as on Linux.
"""

import errno
from typing import TYPE_CHECKING

from tests.simulation.virtual.pipes import error_of
from tests.simulation.virtual.queues import on_grid
from tests.simulation.virtual.sockets import VirtualSocket

if TYPE_CHECKING:
    from tests.simulation.virtual.hosts import Host
    from tests.simulation.virtual.network import Network

RETRIES = 6
"""Packets that are sent after the first: a connect times out after 127 s."""


class Handshake:
    """The opening of one connection, from a client's socket to a port of a host."""

    def __init__(
        self, network: "Network", client: VirtualSocket, target: "Host | None", port: int
    ) -> None:
        self._network = network
        self._client = client
        self._source = client.process.host
        self._target = target
        """The server's host; None for an address that no host has."""
        self._port = port
        self._retries = 0

    def begin(self) -> None:
        """Send the first packet to the server."""
        if not self._client.connecting or self._client.closed:
            return
        target = self._target
        if target is None:
            self._retry_later()
            return
        link = self._network.link(self._source, target)
        if link.partitioned:
            self._retry_later()
        else:
            self._network.send(link, lambda: self._reach(target))

    def _retry_later(self) -> None:
        loop = self._network.loop
        loop.at(on_grid(loop.now + 2.0**self._retries), self._retry)

    def _retry(self) -> None:
        if self._retries < RETRIES:
            self._retries += 1
            self.begin()
        else:
            self._client.fail(error_of(errno.ETIMEDOUT))

    def _reach(self, target: "Host") -> None:
        """Answer the packet, at the server's host."""
        network, client = self._network, self._client
        back = network.link(target, self._source)
        if not target.up or back.partitioned:
            self._retry_later()
            return
        listener = network.listener(self._source, target, self._port)
        if listener is None:
            network.log.note(self._source.name, f"{target.name}:{self._port} refuses a connection")
            network.send(back, lambda: client.fail(error_of(errno.ECONNREFUSED)))
        elif len(listener.accepted) > listener.backlog:
            self._retry_later()
        else:
            network.send(back, lambda: self._establish(listener))

    def _establish(self, listener: VirtualSocket) -> None:
        """Open the connection, at the client's host; the server learns of it a little later."""
        network, client = self._network, self._client
        if client.closed:
            return
        if listener.closed:
            client.fail(error_of(errno.ECONNRESET))
            return
        server = VirtualSocket.accepted_by(listener, client)
        network.open(client, server)
        there = network.link(self._source, listener.process.host)
        network.send(there, lambda: listener.queue_accepted(server))
