"""URLs and addresses of the settings: what may be used, and how they may be shown.

The checks raise ValueError with what is wrong; it never repeats a part of the URL, which may hold
a password.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qs, urlsplit

from worker import tls

_HOSTS = "[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]"
_SERVERS = {  # by scheme: the shape of the rest, and the usual port
    "redis+cluster": (_HOSTS, 6379),
    "rediss+cluster": (_HOSTS, 6379),
    "redis+sentinel": (f"{_HOSTS}/SERVICE[/DB]", 26379),
    "rediss+sentinel": (f"{_HOSTS}/SERVICE[/DB]", 26379),
}


def redacted(url: str) -> str:
    """Return a Redis URL fit to be printed: without user, password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") != authority.count("@"):  # a password with bare / ? # in it, perhaps
        return f"{scheme}://***"
    userinfo, at, _ = authority.rpartition("@")
    place = re.split("[?#]", rest[len(userinfo) + len(at) :], maxsplit=1)[0]
    return f"{scheme}://{'***@' if at else ''}{place}"


def check_redis_url(url: str) -> None:
    """Refuse what no client could use; files of TLS are looked at."""
    scheme = url.partition("://")[0]
    if scheme in _SERVERS:
        read_servers(url)
    else:
        _check_server(_split(url))
    if scheme.startswith("rediss"):
        query = url.partition("?")[2].partition("#")[0]
        tls.check_options({name: values[0] for name, values in parse_qs(query).items()})


def _check_server(parts: SplitResult) -> None:
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "must begin with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"
        )
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("must name a socket: unix:///PATH")
    elif not parts.hostname or not re.fullmatch(r"/?|/\d+", parts.path):
        raise ValueError(f"must be {parts.scheme}://[USER:PASSWORD@]HOST[:PORT][/DB]")
    _check_options(parts.scheme, parts.query, frozenset({"db"}))


@dataclass(frozen=True)
class Servers:
    """What a URL says of several servers: those of a cluster, or its sentinels."""

    addresses: tuple[tuple[str, int], ...]
    """Host and port of each; any one of them will do."""
    service: str
    """What the sentinels call the master; empty for a cluster."""
    scheme: str
    userinfo: str = field(repr=False)
    place: str
    """What follows the host: database and options."""

    def url(self, host: str, port: int, *, with_password: bool = True) -> str:
        """Return the plain URL of one server. It may hold a secret: use `redacted` to show it."""
        userinfo = f"{self.userinfo}@" if self.userinfo and with_password else ""
        return f"{self.scheme}://{userinfo}{join_host_port(host, port)}{self.place}"


def read_servers(url: str) -> Servers | None:
    """Read a URL of several servers; None if it is the URL of one.

    Raises ValueError with what is wrong.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SERVERS:
        return None
    shape, port = _SERVERS[scheme]
    found = re.fullmatch(r"([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?", rest)
    if not found:
        raise ValueError("is not a URL; percent-encode / ? # @ in a password")
    authority, path, query = (part or "" for part in found.groups())
    userinfo, _, hosts = authority.rpartition("@")
    addresses = tuple(_address(host, port) for host in hosts.split(","))
    named = re.fullmatch(
        r"/([A-Za-z0-9._-]+)(?:/(\d*))?" if "SERVICE" in shape else r"()/?(0?)", path
    )
    if None in addresses or not named:
        raise ValueError(f"must be {scheme}://{shape}")
    _check_options(scheme, query)
    return Servers(
        tuple(address for address in addresses if address),
        named[1],
        scheme.partition("+")[0],
        userinfo,
        f"/{named[2] or 0}" + (f"?{query}" if query else ""),
    )


def _address(text: str, port: int) -> tuple[str, int] | None:
    """Read `HOST[:PORT]`; None if it is not that."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?", text)
    if not found or not 0 < int(found[3] or port) < 65_536:
        return None
    return found[1] or found[2], int(found[3] or port)


def _check_options(scheme: str, query: str, known: frozenset[str] = frozenset()) -> None:
    options = parse_qs(query, keep_blank_values=True)
    if scheme.startswith("rediss"):
        known |= tls.OPTIONS
    elif options.keys() & tls.OPTIONS:
        raise ValueError("must begin with rediss, for it has options of TLS")
    if not options.keys() <= known:
        names = ", ".join(sorted(known))
        raise ValueError(
            f"options can only be {names}" if names else "takes no options without TLS"
        )
    if not all(value.isdecimal() for value in options.get("db", [])):
        raise ValueError("option db must be a number")


def check_stt_url(url: str) -> None:
    """Refuse what is not a WebSocket URL, carries a secret, or would send one in clear."""
    parts = _split(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError("must be wss://HOST[:PORT]/PATH")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("takes no user, key or parameters: URLs end up in logs")
    if parts.scheme == "ws" and not _is_loopback(parts.hostname):
        raise ValueError("must be wss://: over ws:// the key would travel in clear")


def service_address(url: str) -> tuple[str, int]:
    """Return host and port of a checked `ws://` or `wss://` URL."""
    parts = _split(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)


def host_port(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`; the host of `[::1]:80` is `::1`."""
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})", address)
    if not found or int(found[3]) > 65_535:
        raise ValueError("must be HOST:PORT or [IPV6]:PORT, or empty for off")
    return found[1] or found[2], int(found[3])


def join_host_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its text may repeat a part of a password
        raise ValueError("is not a URL; percent-encode / ? # @ in a password") from None
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
