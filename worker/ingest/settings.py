"""Settings of the gateway: `TURNBUS_INGEST_*`, read by the loader of `worker.settings`.

Secrets are read from files, which the settings name. The files may hold several secrets, one a
line: during a rotation, the old one and the new one are both valid.
"""

from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from worker.urls import check_http_url, host_port, is_loopback

Network = IPv4Network | IPv6Network

_AUTH = ("twilio_auth_token_file", "bearer_file", "basic_file", "token_key_file")


class IngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one gateway, beside `worker.settings.Settings`, which name Redis and the logs."""

    ingest_listen: str = "127.0.0.1:8090"
    """`HOST:PORT` of the HTTP port."""
    ingest_audiosocket: str = ""
    """`HOST:PORT` of the AudioSocket port; empty: off."""
    ingest_audiosocket_allow: str = ""
    """Networks that may use the AudioSocket port, which has no authentication; commas between."""
    ingest_public_url: str = ""
    """URL at which clients reach the HTTP port: Twilio signs it. Empty: from the request."""
    ingest_twilio_auth_token_file: str = ""
    """File with Twilio's auth tokens, one a line."""
    ingest_bearer_file: str = ""
    """File with bearer tokens, one a line."""
    ingest_basic_file: str = ""
    """File with `USER:PASSWORD`, one a line."""
    ingest_token_key_file: str = ""
    """File with the keys of signed tokens, one a line; the first one signs."""
    ingest_origins: str = ""
    """Origins of pages, beside its own, that may open a socket; commas between; `*`: all."""
    ingest_chunk_ms: Annotated[int, Meta(ge=20, le=1_000)] = 100
    """Audio in one entry."""
    ingest_buffer_s: Annotated[float, Meta(ge=1, le=600)] = 30.0
    """Audio that a call keeps while Redis is away; older audio is dropped."""
    ingest_grace_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    """Time that a call waits for its lost socket to return."""
    ingest_drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 3_600.0
    """Timeout of a stopping gateway for its calls to end."""
    ingest_max_calls: Annotated[int, Meta(ge=1, le=100_000)] = 500
    """Maximum number of calls at a time."""

    @property
    def listen(self) -> tuple[str, int]:
        """Host and port of the HTTP port."""
        return host_port(self.ingest_listen)

    @property
    def audiosocket(self) -> tuple[str, int] | None:
        """Host and port of the AudioSocket port; None if it is off."""
        return host_port(self.ingest_audiosocket) if self.ingest_audiosocket else None

    @property
    def audiosocket_allow(self) -> tuple[Network, ...]:
        """Networks that may use the AudioSocket port; loopback ones if none is set."""
        return _networks(self.ingest_audiosocket_allow or "127.0.0.0/8, ::1")

    @property
    def origins(self) -> frozenset[str]:
        """Origins of pages that may open a socket."""
        return frozenset(_items(self.ingest_origins))

    @property
    def has_auth(self) -> bool:
        """Whether clients can prove that they may open a call."""
        return any(getattr(self, f"ingest_{name}") for name in _AUTH)

    def conflicts(self) -> list[tuple[str, str]]:
        """Return the settings that do not fit the others, with the reasons."""
        found = []
        if not (self.has_auth or is_loopback(self.listen[0])):
            names = ", ".join(f"TURNBUS_INGEST_{name.upper()}" for name in _AUTH)
            why = (
                f"{self.ingest_listen} is not a loopback address: without authentication, anyone "
                f"could open calls; set one of {names}"
            )
            found.append(("ingest_listen", why))
        audiosocket = self.audiosocket
        if audiosocket and not (self.ingest_audiosocket_allow or is_loopback(audiosocket[0])):
            why = (
                f"is required with TURNBUS_INGEST_AUDIOSOCKET={self.ingest_audiosocket}, which is "
                "not a loopback address: name the networks of the PBXs, 10.1.0.0/16 say"
            )
            found.append(("ingest_audiosocket_allow", why))
        return found


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, _items(text)))


def _check_listen(address: str) -> None:
    try:
        host_port(address)
    except ValueError as error:
        raise ValueError(str(error).removesuffix(", or empty for off")) from None


def _check_audiosocket(address: str) -> None:
    if address:
        host_port(address)


def _check_networks(text: str) -> None:
    try:
        _networks(text)
    except ValueError as error:
        raise ValueError(
            f"must be networks such as 10.1.0.0/16, with commas between: {error}"
        ) from None


def _check_public_url(url: str) -> None:
    if url:
        check_http_url(url)
        if urlsplit(url).query:
            raise ValueError("takes no parameters")


def _check_origins(text: str) -> None:
    for origin in _items(text):
        parts = urlsplit(origin)
        if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(
                "must be origins such as https://app.example.com, with commas between, or *"
            )


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "ingest_listen": _check_listen,
    "ingest_audiosocket": _check_audiosocket,
    "ingest_audiosocket_allow": _check_networks,
    "ingest_public_url": _check_public_url,
    "ingest_origins": _check_origins,
}
"""Checks of the values, by setting; they raise ValueError."""
