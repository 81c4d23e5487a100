"""Who may open a call or read its events: decided before the upgrade, from one request. No I/O.

Without any credential only this machine is served: the server listens on loopback, and a browser's
page reaches it by a loopback name. With credentials, each route accepts those that suit it.
No refusal repeats a part of a request's credentials.
"""

import base64
import binascii
import hmac
from collections.abc import Iterable, Iterator
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from worker.ingest.request import Request
from worker.ingest.tokens import Claims, TokenError, verify

Route = Literal["twilio", "asterisk", "freeswitch", "raw", "events", "console"]
"""What a request wants; the two routes with tokens are `raw` and `events`."""

_TOKEN_ROUTES: Final = ("raw", "events")
_LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_TWILIO_DIGESTS: Final = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class Credentials(msgspec.Struct, frozen=True):
    """The secrets of the gateway; several of a kind allow their rotation."""

    twilio_tokens: tuple[str, ...] = ()
    """Auth tokens of Twilio accounts, and shared keys of its webhook settings."""
    bearer_tokens: tuple[str, ...] = ()
    users: tuple[tuple[str, str], ...] = ()
    """User names and passwords of basic authentication."""
    token_key: bytes | None = None
    """Key of signed tokens."""

    def __repr__(self) -> str:
        """Show no secret."""
        return "Credentials(...)"

    def __bool__(self) -> bool:
        """Return whether there is any credential."""
        return bool(self.twilio_tokens or self.bearer_tokens or self.users or self.token_key)


class Refusal(msgspec.Struct, frozen=True):
    """The answer to a request that may not proceed."""

    status: int
    message: str
    challenges: tuple[str, ...] = ()
    """Values of `WWW-Authenticate`."""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers of the answer."""
        return [("WWW-Authenticate", challenge) for challenge in self.challenges]


class _RefusedError(Exception):
    """Ends a decision with its refusal."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Access(msgspec.Struct, frozen=True):
    """Who may do what."""

    credentials: Credentials
    public_url: str = ""
    """URL at which Twilio reaches the gateway, such as `https://ingest.example.com`; its routes
    follow it. Empty: the `Host` header has the name."""
    origins: frozenset[str] = frozenset()
    """Origins of pages that may call, or `*`, besides the gateway's own."""
    is_loopback: bool = False
    """Whether the server listens on loopback addresses only."""

    def authorize(
        self, request: Request, route: Route, session: str | None, now: float
    ) -> Refusal | None:
        """Return why a request may not proceed; None if it may.

        `session` is the session that the request names, None if it names none: then it may have a
        token, whose session `token_claims` returns. `now` is Unix time.
        """
        try:
            self._check_origin(request)
            if not self.credentials:
                self._check_loopback(request)
            elif route == "twilio" and self.credentials.twilio_tokens:
                self._check_signature(request)
            else:
                self._check_credentials(request, route, session, now)
        except _RefusedError as refused:
            return refused.refusal
        return None

    def token_claims(self, request: Request, now: float) -> Claims | None:
        """Return what the request's signed token says; None if it has no valid one."""
        try:
            return self._claims(request, now)
        except (TokenError, _RefusedError):
            return None

    def _check_origin(self, request: Request) -> None:
        origin = _single(request, "Origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if self.public_url and _address(origin) == _origin_address(self.public_url):
            return
        host = _single(request, "Host") or ""
        if _address(origin) is None or _address(origin) != _address(f"{_scheme(origin)}://{host}"):
            raise _RefusedError(
                Refusal(403, "pages of this origin may not call: add it to TURNBUS_INGEST_ORIGINS")
            )

    def _check_loopback(self, request: Request) -> None:
        address = _address(f"http://{_single(request, 'Host') or ''}")
        if not self.is_loopback or address is None or address[0] not in _LOOPBACK_HOSTS:
            # A page whose host name was pointed at 127.0.0.1 has another `Host`.
            raise _RefusedError(
                Refusal(
                    403,
                    "without credentials only this machine is served, as localhost: "
                    "configure credentials for other names",
                )
            )

    def _check_signature(self, request: Request) -> None:
        """Check Twilio's signature: of the URL, which a proxy may show in another form here."""
        signature = _single(request, "X-Twilio-Signature")
        if signature is None:
            raise _RefusedError(Refusal(401, "the request has no X-Twilio-Signature"))
        digest = _twilio_digest(_single(request, "X-Twilio-Webhooks-Signature-Settings"))
        expected = [
            base64.b64encode(hmac.digest(token.encode(), url.encode(), digest))
            for token in self.credentials.twilio_tokens
            for url in self._urls(request)
        ]
        if not _is_one_of(signature.encode(), expected):
            raise _RefusedError(
                Refusal(
                    403,
                    "the Twilio signature does not match: check the auth token, and that "
                    "TURNBUS_INGEST_PUBLIC_URL begins the URL of the stream",
                )
            )

    def _urls(self, request: Request) -> Iterator[str]:
        """Yield the URLs that Twilio may have signed."""
        if self.public_url:
            scheme, _, rest = self.public_url.rstrip("/").partition("://")
            bases, schemes = [rest], [scheme, "wss", "https"]
        else:
            host = _single(request, "Host") or ""
            bases, schemes = [host, f"{host}:443"], ["wss", "https", "ws", "http"]
        path, mark, query = request.target.partition("?")
        bare = path.rstrip("/")
        for scheme in dict.fromkeys(schemes):
            for base in bases:
                for each in (bare, f"{bare}/"):
                    yield f"{scheme}://{base}{each}{mark}{query}"

    def _check_credentials(
        self, request: Request, route: Route, session: str | None, now: float
    ) -> None:
        challenges = self._challenges(route)
        if not challenges:
            raise _RefusedError(Refusal(403, f"no credential that suits /{route} is configured"))
        if self._has_basic(request) or (route != "twilio" and self._has_bearer(request)):
            return
        if route in _TOKEN_ROUTES and self.credentials.token_key:
            try:
                claims = self._claims(request, now)
            except TokenError as error:
                raise _RefusedError(Refusal(401, str(error), challenges)) from None
            if claims is not None:
                _check_claims(claims, request, route, session)
                return
        raise _RefusedError(Refusal(401, f"/{route} requires valid credentials", challenges))

    def _challenges(self, route: Route) -> tuple[str, ...]:
        """Return the authentication schemes that suit a route."""
        known = self.credentials
        has_bearer = known.bearer_tokens and route != "twilio"
        has_token = known.token_key and route in _TOKEN_ROUTES
        basic = ('Basic realm="turnbus", charset="UTF-8"',) if known.users else ()
        return (*basic, *(('Bearer realm="turnbus"',) if has_bearer or has_token else ()))

    def _has_basic(self, request: Request) -> bool:
        scheme, encoded = _authorization(request)
        if scheme != "basic":
            return False
        try:
            sent = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return _is_one_of(
            sent, (f"{u}:{password}".encode() for u, password in self.credentials.users)
        )

    def _has_bearer(self, request: Request) -> bool:
        scheme, sent = _authorization(request)
        known = (token.encode() for token in self.credentials.bearer_tokens)
        return scheme == "bearer" and _is_one_of(sent.encode(), known)

    def _claims(self, request: Request, now: float) -> Claims | None:
        """Return what a token says, from the query or as a bearer; None without one."""
        if not self.credentials.token_key:
            return None
        scheme, sent = _authorization(request)
        values = request.query.get("token", [sent] if scheme == "bearer" else [])
        if not values:
            return None
        if len(values) > 1:
            raise TokenError("the request has more than one token")
        return verify(self.credentials.token_key, values[0], now)


def _twilio_digest(settings: str | None) -> str:
    """Return the digest of a signature. `settings` is `key=ID,algorithm=HMAC_SHA256`, or None.

    Twilio sends settings if a rule for webhooks matches the URL; it signs with a shared key then.
    """
    if settings is None:
        return "sha1"
    fields = dict(field.strip().partition("=")[::2] for field in settings.split(","))
    digest = _TWILIO_DIGESTS.get(fields.get("algorithm", ""))
    if digest is None:
        raise _RefusedError(Refusal(403, "the algorithm of the Twilio signature is not known"))
    return digest


def _check_claims(claims: Claims, request: Request, route: Route, session: str | None) -> None:
    """Refuse a valid token that is for something else."""
    if session is not None and session != claims.session:
        raise _RefusedError(Refusal(403, "the token is for another session"))
    if request.query.get("lane", [claims.lane if route == "raw" else "0"])[-1] != claims.lane:
        raise _RefusedError(Refusal(403, "the token is for another lane"))
    if route == "raw" and not claims.allows("audio"):
        raise _RefusedError(Refusal(403, "the token does not allow to send audio"))
    wants_events = route == "events" or request.query.get("events", ["0"])[-1] != "0"
    if wants_events and not claims.allows("events"):
        raise _RefusedError(Refusal(403, "the token does not allow to read events"))


def _single(request: Request, name: str) -> str | None:
    """Return a header's value; None without it. Two values of one are refused."""
    values = request.headers.get_all(name)
    if len(values) > 1:
        raise _RefusedError(Refusal(400, f"the request has more than one {name} header"))
    return values[0] if values else None


def _authorization(request: Request) -> tuple[str, str]:
    scheme, _, value = (_single(request, "Authorization") or "").partition(" ")
    return scheme.lower(), value.strip()


def _is_one_of(sent: bytes, known: Iterable[bytes]) -> bool:
    """Compare in a time that does not depend on what was sent."""
    return sum(hmac.compare_digest(sent, each) for each in known) > 0


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _origin_address(url: str) -> tuple[str, int | None] | None:
    parts = url.split("/", 3)
    return _address("/".join(parts[:3]))


def _address(url: str) -> tuple[str, int | None] | None:
    """Return the host and the port of a URL; None if it has another form."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None or parts.path or parts.query:
        return None
    return parts.hostname, port or _DEFAULT_PORTS.get(parts.scheme)
