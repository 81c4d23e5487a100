"""URLs and addresses in the settings: validation, parsing and redaction.

The checks raise ValueError. Its text never repeats a part of the URL, which may hold a password.
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from worker import tls

_NOT_ENCODED = "is not a URL; percent-encode / ? # @ in a password"
_HOSTS = "[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]"
_SHAPES = {  # the kind of server: (URL after `://`, default port, path)
    "redis": ("[USER:PASSWORD@]HOST[:PORT][/DB]", 6379, "/?|/[0-9]+"),
    "cluster": (_HOSTS, 6379, "()/?(0?)"),
    "sentinel": (f"{_HOSTS}/SERVICE[/DB]", 26379, r"/([A-Za-z0-9._-]+)(?:/(\d*))?"),
}
_REDIS_SCHEMES = r"rediss?(?:\+cluster|\+sentinel)?|unix"
_BEGINS = "must begin with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"


class _Url(NamedTuple):
    """A URL in parts. `urllib.parse` rejects a list of hosts."""

    scheme: str
    userinfo: str | None
    hosts: str
    path: str
    query: str
    fragment: str


def _split(url: str, schemes: str, otherwise: str) -> _Url:
    """Split a URL. `otherwise` is the error text if its scheme does not match `schemes`."""
    if url[:1] in {"'", '"'}:
        raise ValueError("must be without quotation marks")
    if re.search(r"\s", url):
        raise ValueError("contains white space; percent-encode it (%20)")
    found = re.fullmatch(
        rf"({schemes})://(?:([^/?#]*)@)?([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", url
    )
    if not found:
        raise ValueError(otherwise)
    scheme, userinfo, *others = found.groups()
    return _Url(scheme.lower(), userinfo, *(other or "" for other in others))


def _check_encoding(url: str) -> None:
    """Reject a URL that Python's own parser, which clients use, rejects."""
    try:
        _ = urlsplit(url).port
    except ValueError:  # its text may repeat a part of a password
        raise ValueError(_NOT_ENCODED) from None


def _address(text: str, default_port: int, otherwise: str) -> tuple[str, int]:
    """Parse `HOST[:PORT]`. `otherwise` is the error text if there is no more specific one."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text)
    if not bracketed and (text.count(":") > 1 or "[" in text or "]" in text):
        if re.fullmatch(r"[0-9a-fA-F:.\[\]%]*", text):
            raise ValueError("an IPv6 address must be in brackets: [2001:db8::1]:PORT")
        raise ValueError(otherwise)
    host, port = bracketed.groups("") if bracketed else text.partition(":")[::2]
    if not host:
        raise ValueError(otherwise)
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536):
        raise ValueError(f"{otherwise}; the port must be a number from 1 to 65535")
    if not bracketed:
        check_host(host)
        return host, int(port or default_port)
    try:
        IPv6Address(host)
    except ValueError:
        raise ValueError("what is in brackets must be an IPv6 address") from None
    return host, int(port or default_port)


def check_host(host: str) -> None:
    """Reject a host name that cannot be looked up."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(
            "a part of the host's name is empty, or longer than 63 characters, or not a name"
        ) from None


def redacted(url: str) -> str:
    """Return a Redis URL for display, without user, password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    found = re.fullmatch(r"([^/?#]*@)?([^?#@]*)(?:[?#][^@]*)?", rest)
    if not found:  # perhaps a password with a bare / ? #
        return f"{scheme}://***"
    return f"{scheme}://{'***@' if found[1] else ''}{found[2]}"


def check_redis_url(url: str) -> None:
    """Reject a Redis URL that no client can use, or whose TLS files are invalid."""
    parts = _split(url, _REDIS_SCHEMES, _BEGINS)
    if "+" in parts.scheme:
        parse_servers(url)
    else:
        _check_server(url, parts)
    if parts.scheme.startswith("rediss"):
        tls.check_options({name: values[0] for name, values in parse_qs(parts.query).items()})


def _check_server(url: str, parts: _Url) -> None:
    """Reject the URL of one server."""
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("must name a socket: unix:///PATH")
    else:
        _check_at_sign(parts)
        rest, port, path = _SHAPES["redis"]
        shape = f"must be {parts.scheme}://{rest}"
        if "," in parts.hosts:
            raise ValueError(
                f"{shape}; several servers are a redis+cluster:// or redis+sentinel://"
            )
        _address(parts.hosts, port, shape)
        if not re.fullmatch(path, parts.path):
            raise ValueError(shape)
    _check_encoding(url)
    _check_options(parts, frozenset({"db"}))


def _check_at_sign(parts: _Url) -> None:
    """Reject a URL that a `/`, `?` or `#` in its password has split."""
    if parts.userinfo is None and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(_NOT_ENCODED)


def _check_options(parts: _Url, known: frozenset[str] = frozenset()) -> None:
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme.startswith("rediss"):
        known |= tls.URL_OPTIONS
    elif options.keys() & tls.URL_OPTIONS:
        raise ValueError("must begin with rediss: it has TLS options")
    if not options.keys() <= known:
        names = ", ".join(sorted(known))
        raise ValueError(
            f"options can only be {names}" if names else "takes no options without TLS"
        )
    if not all(value.isdecimal() for value in options.get("db", [])):
        raise ValueError("option db must be a number")


@dataclass(frozen=True)
class ServerList:
    """A parsed URL of several servers: the nodes of a cluster, or sentinels."""

    addresses: tuple[tuple[str, int], ...]
    """Host and port of each server; one that answers is enough."""
    master_name: str
    """Name of the master at the sentinels; empty for a cluster."""
    scheme: str
    userinfo: str = field(repr=False)
    suffix: str
    """Part of the URL after the host: database and options."""

    def url(self, host: str, port: int, *, with_password: bool = True) -> str:
        """Return the plain URL of one server. It may hold a secret: show it only `redacted`."""
        userinfo = f"{self.userinfo}@" if self.userinfo and with_password else ""
        return f"{self.scheme}://{userinfo}{join_host_port(host, port)}{self.suffix}"


def parse_servers(url: str) -> ServerList | None:
    """Parse a URL of several servers; None if it is the URL of one.

    Raises ValueError if the URL is invalid.
    """
    if "+" not in url.partition("://")[0]:
        return None
    parts = _split(url, _REDIS_SCHEMES, _BEGINS)
    scheme, _, kind = parts.scheme.partition("+")
    rest, port, path = _SHAPES[kind]
    shape = f"must be {parts.scheme}://{rest}"
    _check_at_sign(parts)
    if "#" in url:
        raise ValueError(_NOT_ENCODED)
    addresses = tuple(_address(host, port, shape) for host in parts.hosts.split(","))
    named = re.fullmatch(path, parts.path)
    if not named or re.search(r"[^A-Za-z0-9._:,\[\]-]|:(,|$)", parts.hosts):
        raise ValueError(shape)
    _check_options(parts)
    suffix = f"/{named[2] or 0}" + (f"?{parts.query}" if parts.query else "")
    return ServerList(addresses, named[1], scheme, parts.userinfo or "", suffix)


def check_stt_url(url: str) -> None:
    """Reject a URL that is not a WebSocket's, holds a secret, or would send one unencrypted."""
    shape = "must be wss://HOST[:PORT]/PATH"
    parts = _split(url, "(?i:wss?)", shape)
    host, _ = _address(parts.hosts, 443, shape)
    _check_encoding(url)
    if parts.userinfo is not None or parts.query or parts.fragment:
        raise ValueError("takes no user, key or parameters: URLs end up in logs")
    if parts.scheme == "ws" and not is_loopback(host):
        raise ValueError("must be wss://: over ws:// the key would be sent unencrypted")


def provider_address(url: str) -> tuple[str, int]:
    """Return host and port of a checked `ws://` or `wss://` URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)


def check_http_url(url: str) -> tuple[str, int]:
    """Return host and port of an `http://` or `https://` URL; reject any other URL."""
    shape = "must be http://HOST:PORT or https://HOST:PORT"
    parts = _split(url, "(?i:https?)", shape)
    address = _address(parts.hosts, 443 if parts.scheme == "https" else 80, shape)
    _check_encoding(url)
    return address


def host_port(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`. The host of `[::1]:80` is `::1`."""
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", address)
    if not found or int(found[3]) > 65_535:
        raise ValueError("must be HOST:PORT or [IPV6]:PORT, or empty for off")
    host = found[1] or found[2]
    check_host(host)
    return host, int(found[3])


def join_host_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its name or its address."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
