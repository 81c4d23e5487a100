"""An in-memory TCP network between hosts, and its faults.

Each direction between two hosts is a `Link` with a latency.
"""

import errno
import random
import socket
from collections.abc import Callable
from ipaddress import ip_address
from itertools import count
from typing import TYPE_CHECKING

from tests.simulation.virtual.handshakes import Handshake
from tests.simulation.virtual.log import EventLog
from tests.simulation.virtual.loop import VirtualLoop
from tests.simulation.virtual.pipes import Link, Pipe, error_of
from tests.simulation.virtual.queues import current_queue, on_grid
from tests.simulation.virtual.sockets import NO_ADDRESS, Address, VirtualSocket

if TYPE_CHECKING:
    from tests.simulation.virtual.hosts import Host, Process

LATENCY_S = (0.000_2, 0.001)
"""Latency between two hosts, at least and at most."""

LOCAL_LATENCY_S = (0.000_02, 0.000_1)
"""Latency from a host to itself."""

WINDOW_BYTES = 256 * 1024
"""Bytes that the kernels of both sides take before the sender has to wait."""

FIRST_EPHEMERAL_PORT = 32_768

FIRST_PROCESS_ID = 100

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Address]


class Network:
    """The hosts' network. Faults take effect at once, and last until `heal`."""

    def __init__(self, loop: VirtualLoop, log: EventLog, rng: random.Random) -> None:
        self.loop = loop
        self.log = log
        self.window_bytes = WINDOW_BYTES
        self._draw = rng.random
        self._hosts: dict[str, Host] = {}  # by address
        self._names: dict[str, tuple[Host, ...]] = {}
        self._links: dict[tuple[Host, Host], Link] = {}
        self._listeners: dict[tuple[str, int], VirtualSocket] = {}
        self._refused: set[tuple[str, int]] = set()
        self._connections: dict[VirtualSocket, VirtualSocket] = {}  # client end to server end
        self._process_ids = count(FIRST_PROCESS_ID)
        self._next_port = FIRST_EPHEMERAL_PORT

    # -- hosts

    def next_process_id(self) -> int:
        """Return the number of a new process."""
        return next(self._process_ids)

    def add(self, host: "Host") -> None:
        """Make a host known by its address and its name."""
        self._hosts[host.address] = host
        self.name(host.name, host)

    def name(self, name: str, *hosts: "Host") -> None:
        """Let a name resolve to the addresses of hosts, in this order; to none without hosts."""
        self._names[name] = hosts

    def current_process(self) -> "Process":
        """Return the process of the running callback."""
        process = current_queue.get(None)
        if process is None:
            raise RuntimeError("only a process of a host can use the network")
        return process  # type: ignore[return-value]

    def link(self, source: "Host", target: "Host") -> Link:
        """Return the way from one host to another."""
        try:
            return self._links[source, target]
        except KeyError:
            latency = LOCAL_LATENCY_S if source is target else LATENCY_S
            self._links[source, target] = link = Link(*latency)
            return link

    def resolve(
        self,
        host: str | bytes | None,
        port: str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as in `socket.getaddrinfo`
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """Look up a host's name, as `socket.getaddrinfo` does."""
        name = host.decode() if isinstance(host, bytes) else host
        if family not in {0, socket.AF_INET} or type not in {0, socket.SOCK_STREAM}:
            raise socket.gaierror(socket.EAI_FAMILY, "the simulated network has TCP over IPv4")
        if name is None:
            addresses = ["0.0.0.0" if flags & socket.AI_PASSIVE else "127.0.0.1"]
        elif _is_address(name):
            addresses = [name]
        elif flags & socket.AI_NUMERICHOST:
            addresses = []
        elif name == "localhost":
            addresses = ["127.0.0.1"]
        else:
            addresses = [each.address for each in self._names.get(name, ())]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, int(port or 0))) for address in addresses]

    # -- faults

    def set_latency(self, a: "Host", b: "Host", low_s: float, high_s: float) -> None:
        """Set the latency from `a` to `b`."""
        link = self.link(a, b)
        link.low_s, link.spread_s = low_s, high_s - low_s

    def partition(self, a: "Host", b: "Host", *, both: bool = True) -> None:
        """Let nothing pass from `a` to `b`, and back. Data is kept, and arrives after `heal`."""
        self.log.note(a.name, f"partition {'from' if both else 'on the way to'} {b.name}")
        self.link(a, b).partitioned = True
        if both:
            self.link(b, a).partitioned = True

    def stall(self, a: "Host", b: "Host") -> None:
        """Hold back the data of connections from `a` to `b`; new connections still open."""
        self.log.note(a.name, f"stall on the way to {b.name}")
        link = self.link(a, b)
        if link.stalled_since is None:
            link.stalled_since = self.loop.now

    def stalled_s(self, a: "Host", b: "Host") -> float:
        """Return for how long data between two hosts is held back, in either direction."""
        since = (self.link(a, b).stalled_since, self.link(b, a).stalled_since)
        return max((self.loop.now - at for at in since if at is not None), default=0.0)

    def slow(self, a: "Host", b: "Host", bytes_per_s: float) -> None:
        """Limit the bandwidth of each connection from `a` to `b`."""
        self.log.note(a.name, f"{bytes_per_s:g} bytes/s on the way to {b.name}")
        self.link(a, b).bytes_per_s = bytes_per_s

    def heal(self, a: "Host", b: "Host") -> None:
        """End `partition`, `stall` and `slow` between two hosts, in both directions."""
        self.log.note(a.name, f"healed to {b.name}")
        self.link(a, b).release()
        self.link(b, a).release()

    def cut(self, a: "Host", b: "Host", *, after_bytes: int = 0) -> None:
        """Reset each connection between two hosts, after so many more bytes from `a` to `b`."""
        for client, server in self._between(a, b):
            self._cut(client, server, a, after_bytes)

    def lose(self, a: "Host", b: "Host") -> None:
        """Let nothing pass on the connections that exist, ever: both ends see only silence."""
        self.log.note(a.name, f"connections to {b.name} are lost")
        lost = Link(0.0, 0.0)
        lost.partitioned = True
        for client, server in self._between(a, b):
            for pipe in (client.outgoing, server.outgoing):
                if pipe is not None:
                    pipe.link = lost

    def refuse(self, host: "Host", port: int) -> None:
        """Refuse new connections to a port, until `accept`."""
        self.log.note(host.name, f"port {port} refuses connections")
        self._refused.add((host.address, port))

    def accept(self, host: "Host", port: int) -> None:
        """End `refuse`."""
        self.log.note(host.name, f"port {port} accepts connections")
        self._refused.discard((host.address, port))

    def connections(self, a: "Host", b: "Host") -> int:
        """Return the number of connections between two hosts."""
        return len(self._between(a, b))

    def _between(self, a: "Host", b: "Host") -> list[tuple[VirtualSocket, VirtualSocket]]:
        return [
            (client, server)
            for client, server in self._connections.items()
            if {client.process.host, server.process.host} == {a, b}
        ]

    def _cut(
        self, client: VirtualSocket, server: VirtualSocket, sender: "Host", after_bytes: int
    ) -> None:
        def reset() -> None:
            self.log.note(client.process.host.name, f"cut from {server.process.host.name}")
            for end in (client, server):
                end.fail(error_of(errno.ECONNRESET))

        pipe = client.outgoing if client.process.host is sender else server.outgoing
        if after_bytes and pipe is not None:
            pipe.bytes_left = after_bytes
            pipe.on_bytes_left = reset
        else:
            reset()

    # -- for sockets

    def bind(self, owner: VirtualSocket, address: Address) -> Address:
        """Return the address that a socket gets."""
        ip, port = address[:2]
        host = owner.process.host
        if ip not in {"0.0.0.0", "127.0.0.1", host.address}:
            raise error_of(errno.EADDRNOTAVAIL)
        if port and (host.address, port) in self._listeners:
            raise error_of(errno.EADDRINUSE)
        return ip, port or self._ephemeral_port()

    def listen(self, owner: VirtualSocket) -> None:
        """Let a socket get the connections to its address."""
        if owner.address == NO_ADDRESS:
            owner.address = "0.0.0.0", self._ephemeral_port()
        host, port = owner.process.host, owner.address[1]
        if self._listeners.setdefault((host.address, port), owner) is not owner:
            raise error_of(errno.EADDRINUSE)
        self.log.note(host.name, f"listens on port {port}")

    def stop_listening(self, owner: VirtualSocket) -> None:
        """Refuse connections to a socket's address."""
        self._listeners.pop((owner.process.host.address, owner.address[1]), None)

    def connect(self, client: VirtualSocket, address: Address) -> None:
        """Begin to connect a socket."""
        host = client.process.host
        ip, port = address[:2]
        client.address = host.address, self._ephemeral_port()
        target = host if ip in {"127.0.0.1", "0.0.0.0"} else self._hosts.get(ip)
        Handshake(self, client, target, port).begin()

    def listener(self, source: "Host", target: "Host", port: int) -> VirtualSocket | None:
        """Return the socket that gets a connection; None if it is refused."""
        found = self._listeners.get((target.address, port))
        if found is None or (target.address, port) in self._refused:
            return None
        if found.address[0] == "127.0.0.1" and source is not target:
            return None
        return found

    def open(self, client: VirtualSocket, server: VirtualSocket) -> None:
        """Open a connection between two sockets."""
        there, back = self._pipe(client, server), self._pipe(server, client)
        self._connections[client] = server
        where = f"{server.process.host.name}:{server.address[1]}"
        self.log.note(client.process.host.name, f"connected to {where}")
        server.established(there, back)
        client.established(back, there)

    def closed(self, end: VirtualSocket) -> None:
        """Forget a connection when both its ends are closed."""
        if end.incoming is None:
            return
        other = end.incoming.source
        if other.closed:
            self._connections.pop(end, None)
            self._connections.pop(other, None)

    def _pipe(self, source: VirtualSocket, target: VirtualSocket) -> Pipe:
        link = self.link(source.process.host, target.process.host)
        return Pipe(self.loop, self.log, self._draw, link, source, target, self.window_bytes)

    def _ephemeral_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def send(self, link: Link, act: Callable[[], None]) -> None:
        """Call a function when a packet has passed a link."""
        delay_s = link.low_s + self._draw() * link.spread_s
        self.loop.at(on_grid(self.loop.now + delay_s), act)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
