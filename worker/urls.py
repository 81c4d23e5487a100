"""URLs and addresses in the settings: validation, parsing and redaction.

The checks raise ValueError. Its text never repeats a part of the URL, which may hold a password.
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from urllib.parse import SplitResult, parse_qs, urlsplit

from worker import tls

_HOSTS = "[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]"
_NOT_ENCODED = "is not a URL; percent-encode / ? # @ in a password"
_SERVERS = {  # scheme: (shape of the rest, default port)
    "redis+cluster": (_HOSTS, 6379),
    "rediss+cluster": (_HOSTS, 6379),
    "redis+sentinel": (f"{_HOSTS}/SERVICE[/DB]", 26379),
    "rediss+sentinel": (f"{_HOSTS}/SERVICE[/DB]", 26379),
}


def redacted(url: str) -> str:
    """Return a Redis URL for display, without user, password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if rest.count("@") != authority.count("@"):  # perhaps a password with a bare / ? #
        return f"{scheme}://***"
    userinfo, at, _ = authority.rpartition("@")
    place = re.split("[?#]", rest[len(userinfo) + len(at) :], maxsplit=1)[0]
    return f"{scheme}://{'***@' if at else ''}{place}"


def check_redis_url(url: str) -> None:
    """Reject a Redis URL that no client can use, or whose TLS files are invalid."""
    _check_text(url)
    scheme = url.partition("://")[0]
    if scheme in _SERVERS:
        parse_servers(url)
    else:
        _check_server(url)
    if scheme.startswith("rediss"):
        query = url.partition("?")[2].partition("#")[0]
        tls.check_options({name: values[0] for name, values in parse_qs(query).items()})


def _check_text(url: str) -> None:
    """Reject quotation marks, and white space of a password that is not encoded."""
    if url[:1] in {"'", '"'}:
        raise ValueError("must be without quotation marks")
    if re.search(r"\s", url):
        raise ValueError("contains white space; percent-encode it (%20)")


def _check_server(url: str) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "must begin with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"
        )
    if scheme == "unix":
        if not _split(url).path.strip("/"):
            raise ValueError("must name a socket: unix:///PATH")
    else:
        authority = _authority(rest)
        shape = f"{scheme}://[USER:PASSWORD@]HOST[:PORT][/DB]"
        if "," in authority.rpartition("@")[2]:
            raise ValueError(
                f"must be {shape}; several servers are a redis+cluster:// or redis+sentinel://"
            )
        _check_place(authority, f"must be {shape}")
        if not re.fullmatch(r"/?|/[0-9]+", _split(url).path):
            raise ValueError(f"must be {shape}")
    _check_options(scheme, _split(url).query, frozenset({"db"}))


def _authority(rest: str) -> str:
    """Return the part of a URL between `://` and the path."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in authority:
        raise ValueError(_NOT_ENCODED)
    return authority


def _check_place(authority: str, otherwise: str) -> None:
    """Reject an invalid `[USER:PASSWORD@]HOST[:PORT]`.

    `otherwise` is the error text if there is no more specific one.
    """
    place = authority.rpartition("@")[2]
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", place)
    if not bracketed and (place.count(":") > 1 or "[" in place or "]" in place):
        if re.fullmatch(r"[0-9a-fA-F:.\[\]%]*", place):
            raise ValueError("an IPv6 address must be in brackets: [2001:db8::1]:PORT")
        raise ValueError(otherwise)
    host, port = bracketed.groups("") if bracketed else place.partition(":")[::2]
    if not host:
        raise ValueError(otherwise)
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536):
        raise ValueError(f"{otherwise}; the port must be a number from 1 to 65535")
    if bracketed:
        _check_ipv6(host)
    else:
        check_host(host)


def _check_ipv6(host: str) -> None:
    try:
        IPv6Address(host)
    except ValueError:
        raise ValueError("what is in brackets must be an IPv6 address") from None


def check_host(host: str) -> None:
    """Reject a host name that cannot be looked up."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(
            "a part of the host's name is empty, or longer than 63 characters, or not a name"
        ) from None


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
    scheme, _, rest = url.partition("://")
    if scheme not in _SERVERS:
        return None
    shape, port = _SERVERS[scheme]
    found = re.fullmatch(r"([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?", rest)
    if not found:
        raise ValueError(_NOT_ENCODED)
    authority, path, query = (part or "" for part in found.groups())
    _authority(rest)
    userinfo, _, hosts = authority.rpartition("@")
    for host in hosts.split(","):
        _check_place(host, f"must be {scheme}://{shape}")
    addresses = tuple(_address(host, port) for host in hosts.split(","))
    named = re.fullmatch(
        r"/([A-Za-z0-9._-]+)(?:/(\d*))?" if "SERVICE" in shape else r"()/?(0?)", path
    )
    if None in addresses or not named:
        raise ValueError(f"must be {scheme}://{shape}")
    _check_options(scheme, query)
    return ServerList(
        tuple(address for address in addresses if address),
        named[1],
        scheme.partition("+")[0],
        userinfo,
        f"/{named[2] or 0}" + (f"?{query}" if query else ""),
    )


def _address(text: str, port: int) -> tuple[str, int] | None:
    """Parse `HOST[:PORT]`; None if it is invalid."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?", text)
    if not found or not 0 < int(found[3] or port) < 65_536:
        return None
    return found[1] or found[2], int(found[3] or port)


def _check_options(scheme: str, query: str, known: frozenset[str] = frozenset()) -> None:
    options = parse_qs(query, keep_blank_values=True)
    if scheme.startswith("rediss"):
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


def check_stt_url(url: str) -> None:
    """Reject a URL that is not a WebSocket's, holds a secret, or would send one unencrypted."""
    shape = "must be wss://HOST[:PORT]/PATH"
    _check_text(url)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in {"ws", "wss"}:
        raise ValueError(shape)
    _check_place(re.split("[/?#]", rest, maxsplit=1)[0], shape)
    parts = _split(url)
    if not parts.hostname:
        raise ValueError(shape)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("takes no user, key or parameters: URLs end up in logs")
    if parts.scheme == "ws" and not _is_loopback(parts.hostname):
        raise ValueError("must be wss://: over ws:// the key would be sent unencrypted")


def provider_address(url: str) -> tuple[str, int]:
    """Return host and port of a checked `ws://` or `wss://` URL."""
    parts = _split(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)


def check_http_url(url: str) -> tuple[str, int]:
    """Return host and port of an `http://` or `https://` URL; reject any other URL."""
    shape = "must be http://HOST:PORT or https://HOST:PORT"
    _check_text(url)
    scheme, separator, rest = url.partition("://")
    usual_port = {"http": 80, "https": 443}.get(scheme.lower())
    if not separator or usual_port is None:
        raise ValueError(shape)
    _check_place(re.split("[/?#]", rest, maxsplit=1)[0], shape)
    parts = _split(url)
    return parts.hostname or "", parts.port or usual_port


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


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its text may repeat a part of a password
        raise ValueError(_NOT_ENCODED) from None
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
