"""HTTP proxies, with the variables that curl uses: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.

Only `wss://` uses a proxy: `ws://` is for this machine only. A proxy's user and password are sent
to that proxy and never printed.
"""

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import cast
from urllib.parse import unquote, urlsplit

from websockets.proxy import Proxy as HttpProxy
from websockets.proxy import prepare_connect_request
from websockets.uri import WebSocketURI

from worker.descriptors import session_socket
from worker.errors import SettingsError, SttCredentialsError, SttError, SttTransientError
from worker.network import connect_tcp, open_transport
from worker.urls import check_host, join_host_port, provider_address

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the header of a response to CONNECT."""

_VARIABLES = ("wss_proxy", "https_proxy", "all_proxy")
"""Variables, most specific first; the uppercase name is used if the lowercase one is not set."""

_PORTS = {"http": 80, "https": 443}
"""Default port of each scheme."""

_SHAPE = "http://[USER:PASSWORD@]HOST:PORT or https://[USER:PASSWORD@]HOST:PORT"


class _Tunnel(asyncio.Protocol):
    """Sends CONNECT and reads the status of the response.

    The library's parser rejects responses of real proxies: without a reason phrase, or with a space
    before a colon.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Status of the response; 0 if it is not HTTP."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods but is not an instance.
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head:
            found = re.match(rb"HTTP/1\.[01] (\d{3})\b", self._head)
            self._settle(int(found[1]) if found else 0)
        elif len(self._head) > MAX_HEAD_BYTES:
            self._settle(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(0)

    def _settle(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)


class Proxy:
    """The proxy between a worker and its provider."""

    def __init__(self, variable: str, http: HttpProxy) -> None:
        self.variable = variable
        """Environment variable that sets the proxy."""
        self.address = join_host_port(http.host, http.port)
        """Host and port, without credentials."""
        self._http = http

    def __repr__(self) -> str:
        return f"Proxy({self.variable}, {self.address})"

    async def open_transport(
        self,
        protocol: asyncio.Protocol,
        uri: WebSocketURI,
        context: Callable[[], ssl.SSLContext],
        timeout_s: float,
    ) -> None:
        """Connect a protocol, with TLS, to the host of `uri`.

        `timeout_s` limits the connect to the proxy. Raises `OSError`, which names the proxy, and
        `SttError` if the proxy refuses.
        """
        tunnel = await self._connect(uri, context, timeout_s)
        try:
            transport = await asyncio.get_running_loop().start_tls(
                tunnel, protocol, context(), server_hostname=uri.host
            )
        except BaseException:
            tunnel.abort()
            raise
        if transport is None:
            raise ConnectionResetError(f"proxy {self.address} closed the connection")
        protocol.connection_made(transport)

    async def _connect(
        self, uri: WebSocketURI, context: Callable[[], ssl.SSLContext], timeout_s: float
    ) -> asyncio.Transport:
        """Return a transport that the proxy has connected to the host of `uri`."""
        http = self._http
        try:
            transport, tunnel = await open_transport(
                partial(_Tunnel, prepare_connect_request(http, uri)),
                await connect_tcp(http.host, http.port, timeout_s, session_socket),
                context() if http.scheme == "https" else None,
                http.host,
            )
        except ssl.SSLError:
            raise
        except TimeoutError as error:
            raise TimeoutError(f"proxy: {error}") from None
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"proxy {self.address}: {reason}") from None
        status = 0
        try:
            status = await tunnel.status
        finally:
            if not 200 <= status < 300:
                transport.abort()
        if not status:
            raise ConnectionResetError(f"proxy {self.address} gave no HTTP answer")
        if not 200 <= status < 300:
            raise self._refused(status, uri.host)
        return transport

    def _refused(self, status: int, host: str) -> SttError:
        """Return a credentials error if the proxy rejects this worker, else a transient error."""
        known = {each.value: f" {each.phrase}" for each in HTTPStatus}
        message = f"the proxy {self.address} refuses: HTTP {status}{known.get(status, '')}"
        kind: type[SttError] = SttCredentialsError
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            advice = f"fix the user and password in {self.variable}"
        elif status == HTTPStatus.FORBIDDEN:
            advice = f"have the proxy allow {host}, or put {host} into NO_PROXY"
        else:
            kind, advice = SttTransientError, f"check that the proxy in {self.variable} works"
        return kind(message, status=status, advice=advice)


def find_proxy(url: str, env: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a provider's URL, or None if the connection is direct.

    Raises `SettingsError`, which contains no value, for a proxy that cannot be used.
    """
    host, port = provider_address(url)
    if urlsplit(url).scheme != "wss" or _is_exempt(host, port, env):
        return None
    for name in _VARIABLES:
        variable = name if name in env else name.upper()
        if value := env.get(variable, "").strip():
            return Proxy(variable, _read(variable, value, host))
    return None


def _read(variable: str, value: str, host: str) -> HttpProxy:
    text = value if "://" in value else f"http://{value}"
    if text.lower().startswith("socks"):
        advice = f"name an HTTP proxy in HTTPS_PROXY, or put {host} into NO_PROXY"
        raise SettingsError([f"{variable}: SOCKS is not supported; {advice}"])
    with suppress(ValueError):  # its message may contain part of a password
        parts = urlsplit(text)
        rest = parts.path.strip("/") or parts.query or parts.fragment
        if parts.hostname and parts.scheme in _PORTS and not rest:
            check_host(parts.hostname)
            port = parts.port or _PORTS[parts.scheme]
            user = None if parts.username is None else unquote(parts.username, errors="strict")
            password = unquote(parts.password or "", errors="strict")
            return HttpProxy(parts.scheme, parts.hostname, port, user, password)
    raise SettingsError([f"{variable}: must be {_SHAPE}"])


def _is_exempt(host: str, port: int, env: Mapping[str, str]) -> bool:
    """Return whether `NO_PROXY` matches a host: by name, domain, address, network or `*`."""
    named = env.get("no_proxy", env.get("NO_PROXY", ""))
    return any(
        _covers(each, host.lower(), port) for each in named.lower().replace(",", " ").split()
    )


def _covers(entry: str, host: str, port: int) -> bool:
    with suppress(ValueError):  # a name
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    name, _, of_port = entry.partition(":")
    domain = name.removeprefix("*").removeprefix(".")
    if of_port not in {"", str(port)}:
        return False
    return name == "*" or (bool(domain) and f".{host}".endswith(f".{domain}"))
