"""Signed tokens."""

import pytest

from worker.ingest.tokens import TokenError, issue, verify

KEY = b"k" * 32


def test_token_gives_its_claims_back() -> None:
    claims = verify(KEY, issue(KEY, "call-1", "audio", 100), 99)
    assert (claims.session, claims.scope, claims.expires_at) == ("call-1", "audio", 100)


@pytest.mark.parametrize(("key", "now"), [(KEY, 100), (b"x" * 32, 0)])
def test_wrong_or_expired_token_is_refused(key: bytes, now: int) -> None:
    token = issue(KEY, "call-1", "both", 100)
    with pytest.raises(TokenError) as refused:
        verify(key, token, now)
    assert token not in str(refused.value)
