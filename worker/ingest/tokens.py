"""Signed tokens: the right to send the audio of one session, or to read its events, for a while.

A token is `base64url(JSON) . base64url(HMAC-SHA256)`, without padding. The signature covers the
encoded JSON. No error repeats any part of a token.
"""

import base64
import binascii
import hmac
from typing import Annotated, Final, Literal

import msgspec

from schemas.audio import Lane
from worker.errors import TurnbusError

KEY_BYTES_MIN: Final = 32
"""Minimum size of the key."""

TOKEN_CHARACTERS_MAX: Final = 1_024
"""Maximum length of a token that is looked at."""

Scope = Literal["audio", "events", "both"]
"""What a token is for."""

SessionId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}$(?!\n)")]


class TokenError(TurnbusError):
    """A token that is wrong or expired; the message says which."""


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a valid token says."""

    session: SessionId = msgspec.field(name="s")
    expires_at: int = msgspec.field(name="e")
    """Unix time in seconds."""
    scope: Scope = msgspec.field(name="p")
    lane: Lane = msgspec.field(name="l", default="0")
    """Lane of the session: the same id in another lane is another session."""

    def allows(self, right: Literal["audio", "events"]) -> bool:
        """Return whether the token gives a right."""
        return self.scope in {right, "both"}


def issue(key: bytes, session: str, scope: Scope, expires_at: int, lane: str = "0") -> str:
    """Return a token. Raises `TokenError` if the key or the session's id is not valid."""
    if len(key) < KEY_BYTES_MIN:
        raise TokenError(f"the token key must have at least {KEY_BYTES_MIN} bytes")
    try:
        claims = msgspec.convert({"s": session, "e": expires_at, "p": scope, "l": lane}, Claims)
    except msgspec.ValidationError:
        raise TokenError(
            "a token names one session: 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
        ) from None
    payload = _encoded(msgspec.json.encode(claims))
    return f"{payload}.{_signature(key, payload)}"


def verify(key: bytes, token: str, now: float) -> Claims:
    """Return what a token says. Raises `TokenError` if it is wrong or expired."""
    payload, _, signature = token.partition(".")
    if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
        raise TokenError("the token is not valid")
    if not hmac.compare_digest(_signature(key, payload), signature):
        raise TokenError("the token is not valid: it was changed, or signed with another key")
    try:
        encoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        claims = msgspec.json.decode(encoded, type=Claims)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise TokenError("the token is not valid: its content has another form") from None
    if claims.expires_at <= now:
        raise TokenError("the token is expired: get a new one")
    return claims


def _signature(key: bytes, payload: str) -> str:
    return _encoded(hmac.digest(key, payload.encode(), "sha256"))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
