"""Private certificate authorities, the certificates they issue, and servers that use these."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from tests.support.embedded_cluster import client, execute
from worker.local.redis import EmbeddedRedis, free_port
from worker.urls import join_host_port, provider_address


class Certificate(NamedTuple):
    """Files of a certificate and its key."""

    chain: Path
    key: Path

    def directives(self, authority: Path, port: int) -> dict[str, str]:
        """Return directives for a Redis server that listens with TLS and replicates over TLS.

        The server requires no client certificate.
        """
        return {
            "tls-port": str(port),
            "tls-cert-file": str(self.chain),
            "tls-key-file": str(self.key),
            "tls-ca-cert-file": str(authority),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }


class Authority:
    """A private certificate authority."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self._ca = trustme.CA()
        self._issued = 0
        self.file = directory / f"{name}.pem"
        """Certificate of the authority."""
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, expired: bool = False) -> Certificate:
        """Issue a certificate for host names and addresses."""
        ends = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
        leaf = self._ca.issue_cert(*names, not_before=ends - timedelta(days=2), not_after=ends)
        self._issued += 1
        stem = f"{self._name}-{self._issued}"
        made = Certificate(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        for number, part in enumerate(leaf.cert_chain_pems):
            part.write_to_path(str(made.chain), append=number > 0)
        leaf.private_key_pem.write_to_path(str(made.key))
        return made


async def add_tls(server: EmbeddedRedis, authority: Authority, certificate: Certificate) -> int:
    """Add a TLS port to a running server; return the port."""
    port = free_port()
    config = certificate.directives(authority.file, port)
    async with client(server) as redis:
        await execute(redis, "CONFIG", "SET", *(word for pair in config.items() for word in pair))
    return port


@asynccontextmanager
async def behind_tls(
    url: str, certificate: Certificate, host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """Listen with TLS in front of a WebSocket server, as a load balancer does; yield the new URL.

    The URL contains `localhost`, or the host if that is an IPv6 address.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    to, path = provider_address(url), urlsplit(url).path

    async def serve(front: ByteStream) -> None:
        async with (
            front,
            await anyio.connect_tcp(*to) as behind,
            anyio.create_task_group() as tasks,
        ):

            async def pass_on(source: ByteStream, target: ByteStream) -> None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for data in source:
                        await target.send(data)
                tasks.cancel_scope.cancel()

            tasks.start_soon(pass_on, front, behind)
            tasks.start_soon(pass_on, behind, front)

    listener = await anyio.create_tcp_listener(local_host=host)
    port = listener.extra(SocketAttribute.local_port)
    async with TLSListener(listener, context) as secure, anyio.create_task_group() as tasks:
        tasks.start_soon(secure.serve, serve)
        yield f"wss://{join_host_port(host if ':' in host else 'localhost', port)}{path}"
        tasks.cancel_scope.cancel()
