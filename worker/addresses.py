"""URLs and addresses of the settings: what may be used, and how they may be shown.

The checks raise ValueError with what is wrong; it never repeats a part of the URL, which may hold
a password.
"""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qs, urlsplit

_REDIS_OPTIONS = frozenset(
    {"db", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"}
    | {"ssl_ciphers", "ssl_keyfile", "ssl_min_version"}
)


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
    """Refuse what no client could use, and what is not supported."""
    parts = _split(url)
    if parts.scheme in {"redis+sentinel", "redis+cluster"}:
        raise ValueError(f"{parts.scheme}:// is not supported yet")
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("must name a socket: unix:///PATH")
    elif not parts.hostname or not re.fullmatch(r"/?|/\d+", parts.path):
        raise ValueError(f"must be {parts.scheme}://[USER:PASSWORD@]HOST[:PORT][/DB]")
    if not parse_qs(parts.query, keep_blank_values=True).keys() <= _REDIS_OPTIONS:
        raise ValueError(f"options can only be {', '.join(sorted(_REDIS_OPTIONS))}")


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
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, or empty for off")
    return bare, int(port)


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
