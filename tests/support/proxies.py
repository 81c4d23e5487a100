"""An HTTP proxy for tests: it connects to the target of CONNECT, or rejects the request."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from tests.support.certificates import Certificate

MAX_HEAD_BYTES = 65_536


class ConnectProxy:
    """Created by `serve`."""

    def __init__(self, known: Mapping[str, tuple[str, int]]) -> None:
        self.known = known
        """Address of each `HOST:PORT`. Only the proxy can resolve these names."""
        self.port = 0
        self.heads: list[str] = []
        """Requests received, without their bodies."""
        self.answer: bytes | None = None
        """Reply sent instead of a connection. An empty reply connects."""
        self.established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        """Reply sent with a connection."""

    @classmethod
    @asynccontextmanager
    async def serve(
        cls, known: Mapping[str, tuple[str, int]], certificate: Certificate | None = None
    ) -> AsyncIterator["ConnectProxy"]:
        """Listen until the context ends, with TLS if there is a certificate."""
        proxy = cls(known)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        proxy.port = listener.extra(SocketAttribute.local_port)
        serving: Listener[ByteStream] = listener
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate.chain, certificate.key)
            serving = TLSListener(listener, context, standard_compatible=False)
        async with serving, anyio.create_task_group() as tasks:
            tasks.start_soon(serving.serve, proxy._serve)
            try:
                yield proxy
            finally:
                tasks.cancel_scope.cancel()

    async def _serve(self, front: ByteStream) -> None:
        gone = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
        with suppress(*gone, anyio.IncompleteRead):
            async with front:
                reader = BufferedByteReceiveStream(front)
                head = (await reader.receive_until(b"\r\n\r\n", MAX_HEAD_BYTES)).decode()
                self.heads.append(head)
                if self.answer is not None:
                    await front.send(self.answer)
                    return
                place = self.known[head.split()[1]]
                async with await anyio.connect_tcp(*place) as behind:
                    await front.send(self.established)
                    await _join(front, behind)


async def _join(front: ByteStream, behind: ByteStream) -> None:
    async with anyio.create_task_group() as tasks:

        async def pass_on(source: ByteStream, target: ByteStream) -> None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async for data in source:
                    await target.send(data)
            tasks.cancel_scope.cancel()

        tasks.start_soon(pass_on, front, behind)
        tasks.start_soon(pass_on, behind, front)
