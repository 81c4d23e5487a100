"""Who may open a call."""

import base64
import hmac

import pytest
from websockets.datastructures import Headers

from worker.ingest.auth import Access, Credentials
from worker.ingest.http import Request
from worker.ingest.tokens import issue

KEY = b"k" * 32


def _status(access: Access, target: str, session: str | None = None, **headers: str) -> int:
    named = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    route = "twilio" if target == "/twilio" else "raw"
    refusal = access.authorize(Request(target, named, "127.0.0.1"), route, session, 50)  # type: ignore[arg-type]
    return refusal.status if refusal else 200


@pytest.mark.parametrize("url", ["wss://a.example/twilio", "https://a.example/twilio/"])
def test_twilio_signature_is_checked(url: str) -> None:
    access = Access(Credentials(twilio_tokens=("old", "new")))
    signature = base64.b64encode(hmac.digest(b"new", url.encode(), "sha1")).decode()
    assert _status(access, "/twilio", Host="a.example", X_Twilio_Signature=signature) == 200
    assert _status(access, "/twilio", Host="b.example", X_Twilio_Signature=signature) == 403
    assert _status(access, "/twilio", Host="a.example") == 401


def test_token_serves_its_session_until_its_expiry() -> None:
    access = Access(Credentials(token_key=KEY))
    assert _status(access, f"/raw?token={issue(KEY, 'a', 'audio', 60)}", "a") == 200
    assert _status(access, f"/raw?token={issue(KEY, 'a', 'audio', 60)}", "b") == 403
    assert _status(access, f"/raw?token={issue(KEY, 'a', 'audio', 40)}", "a") == 401


def test_only_loopback_names_are_served_openly() -> None:
    access = Access(Credentials(), is_loopback=True)
    assert _status(access, "/raw", Host="localhost:8090") == 200
    assert _status(access, "/raw", Host="evil.example") == 403
    assert _status(access, "/raw", Host="localhost:8090", Origin="http://evil.example") == 403
