"""Signed tokens."""

import base64
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ingest.tokens import Scope, TokenError, issue, verify

KEY = b"k" * 32


def _signed(content: bytes) -> str:
    payload = base64.urlsafe_b64encode(content).rstrip(b"=")
    signature = base64.urlsafe_b64encode(hmac.digest(KEY, payload, "sha256")).rstrip(b"=")
    return f"{payload.decode()}.{signature.decode()}"


@given(
    st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
    st.sampled_from(("audio", "events", "both")),
    st.integers(1, 2**53),
)
def test_token_gives_its_claims_back(session: str, scope: Scope, expires_at: int) -> None:
    claims = verify(KEY, issue(KEY, session, scope, expires_at), expires_at - 1)
    assert (claims.session, claims.scope, claims.expires_at) == (session, scope, expires_at)


def test_scope_names_the_rights() -> None:
    def rights(scope: Scope) -> tuple[bool, bool]:
        claims = verify(KEY, issue(KEY, "a", scope, 100), 0)
        return claims.allows("audio"), claims.allows("events")

    assert rights("audio") == (True, False)
    assert rights("events") == (False, True)
    assert rights("both") == (True, True)


@pytest.mark.parametrize(("key", "now"), [(KEY, 100), (b"x" * 32, 0)])
def test_wrong_or_expired_token_is_refused(key: bytes, now: int) -> None:
    token = issue(KEY, "call-1", "both", 100)
    with pytest.raises(TokenError) as refused:
        verify(key, token, now)
    assert token not in str(refused.value)


@pytest.mark.parametrize("session", ["", "*", "a b", "a\n", "é", "a" * 129, "a/b"])
def test_token_names_one_session(session: str) -> None:
    with pytest.raises(TokenError, match="one session"):
        issue(KEY, session, "both", 100)


def test_short_key_is_refused() -> None:
    with pytest.raises(TokenError, match="at least 32 bytes"):
        issue(b"k" * 31, "a", "both", 100)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff",
        b"[" * 300,
        json.dumps({"s": "a", "e": 100}).encode(),
        json.dumps({"s": "*", "e": 100, "p": "both"}).encode(),
        json.dumps({"s": "a", "e": "100", "p": "both"}).encode(),
        json.dumps({"s": "a", "e": 100, "p": "all"}).encode(),
        json.dumps({"s": "a", "e": 100, "p": "both", "more": 1}).encode(),
    ],
)
def test_signed_content_of_another_form_is_refused(content: bytes) -> None:
    with pytest.raises(TokenError, match="content has another form"):
        verify(KEY, _signed(content), 0)


@given(st.integers(0, 200), st.characters(max_codepoint=255))
def test_changed_token_is_refused(place: int, character: str) -> None:
    token = issue(KEY, "call-1", "both", 100)
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    if changed != token:
        with pytest.raises(TokenError):
            verify(KEY, changed, 0)


@given(st.text(max_size=2_000))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(TokenError) as refused:
        verify(KEY, text, 0)
    assert len(text) < 10 or text not in str(refused.value)
