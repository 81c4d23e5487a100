"""Who may open a call, read its events, or load a page."""

import base64
import hmac
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from worker.ingest.auth import Access, Credentials, Refusal, Route
from worker.ingest.http import Request
from worker.ingest.tokens import Scope, issue

KEY = b"k" * 32
OPEN = Access(Credentials(), is_loopback=True)
CLOSED = Access(
    Credentials(
        twilio_tokens=("twilio-secret",),
        bearer_tokens=("bearer-old", "bearer-new"),
        users=(("alice", "pass:word"), ("bjørn", "pässword")),
        token_key=KEY,
    )
)
SECRETS = ("twilio-secret", "bearer-old", "bearer-new", "pass:word", "pässword", "k" * 32)


def _refusal(
    access: Access, route: Route, target: str, session: str | None = None, **headers: str
) -> Refusal | None:
    named = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return access.authorize(Request(target, named, "127.0.0.1"), route, session, 50)


def _status(
    access: Access, route: Route, target: str, session: str | None = None, **headers: str
) -> int:
    refusal = _refusal(access, route, target, session, **headers)
    return refusal.status if refusal else 200


def _basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def _signed(url: str, key: str = "twilio-secret", digest: str = "sha1") -> str:
    return base64.b64encode(hmac.digest(key.encode(), url.encode(), digest)).decode()


def test_twilio_signature_matches_the_vectors_of_twilio() -> None:
    # Token, URL and signatures are those of the tests of Twilio's helper for Node.js.
    access = Access(Credentials(twilio_tokens=("12345",)))
    for body_hash, signature in [
        (
            "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620",
            "a9nBmqA0ju/hNViExpshrM61xv4=",
        ),
        (
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "Ldidvp12m26NI7eqEvxnEpkd9Hc=",
        ),
    ]:
        target = f"/myapp.php?foo=1&bar=2&bodySHA256={body_hash}"
        sent = {"Host": "mycompany.com", "X_Twilio_Signature": signature}
        assert _status(access, "twilio", target, **sent) == 200
        assert _status(access, "twilio", target.replace("foo=1", "foo=2"), **sent) == 403


@pytest.mark.parametrize(
    "url",
    [
        "wss://a.example/twilio",
        "wss://a.example/twilio/",
        "https://a.example/twilio",
        "https://a.example:443/twilio/",
        "ws://a.example/twilio",
    ],
)
def test_twilio_signature_of_each_form_of_the_url_is_accepted(url: str) -> None:
    sent = {"X_Twilio_Signature": _signed(url)}
    assert _status(CLOSED, "twilio", "/twilio", Host="a.example", **sent) == 200
    assert _status(CLOSED, "twilio", "/twilio", Host="b.example", **sent) == 403
    assert _status(CLOSED, "twilio", "/other", Host="a.example", **sent) == 403


def test_twilio_signature_covers_the_public_url() -> None:
    access = Access(CLOSED.credentials, public_url="https://a.example/base/")
    sent = {"X_Twilio_Signature": _signed("wss://a.example/base/twilio")}
    assert _status(access, "twilio", "/twilio", Host="10.0.0.1:8090", **sent) == 200
    assert _status(access, "twilio", "/twilio/", Host="10.0.0.1:8090", **sent) == 200


@pytest.mark.parametrize(
    ("settings", "digest", "expected"),
    [
        ("key=abc,algorithm=HMAC_SHA256", "sha256", 200),
        ("algorithm=HMAC_SHA256, key=abc", "sha256", 200),
        ("key=abc,algorithm=HMAC_SHA1", "sha1", 200),
        ("key=abc,algorithm=HMAC_SHA256", "sha1", 403),
        ("key=abc,algorithm=NONE", "sha1", 403),
        ("HMAC_SHA256", "sha256", 403),
        ("", "sha1", 403),
    ],
)
def test_twilio_settings_name_the_algorithm(settings: str, digest: str, expected: int) -> None:
    sent = {
        "Host": "a.example",
        "X_Twilio_Signature": _signed("wss://a.example/twilio", digest=digest),
        "X_Twilio_Webhooks_Signature_Settings": settings,
    }
    assert _status(CLOSED, "twilio", "/twilio", **sent) == expected


def test_twilio_route_requires_its_signature() -> None:
    assert _status(CLOSED, "twilio", "/twilio", Host="a.example") == 401
    for value in ("", "é", "=", _signed("wss://a.example/twilio", key="other")):
        assert (
            _status(CLOSED, "twilio", "/twilio", Host="a.example", X_Twilio_Signature=value) == 403
        )
    for value in (_basic("alice:pass:word"), "Bearer bearer-new"):
        assert _status(CLOSED, "twilio", "/twilio", Host="a.example", Authorization=value) == 401


def test_twilio_route_takes_basic_without_a_twilio_token() -> None:
    access = Access(Credentials(users=(("a", "b"),), bearer_tokens=("c",)))
    assert _status(access, "twilio", "/twilio", Authorization=_basic("a:b")) == 200
    assert _status(access, "twilio", "/twilio", Authorization="Bearer c") == 401
    bearer_only = Access(Credentials(bearer_tokens=("c",)))
    assert _status(bearer_only, "twilio", "/twilio", Authorization="Bearer c") == 403


ROUTES: tuple[Route, ...] = ("asterisk", "freeswitch", "raw", "events", "console")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (_basic("alice:pass:word"), 200),
        (_basic("bjørn:pässword"), 200),
        (_basic("alice:pass"), 401),
        (_basic("alice"), 401),
        (_basic("alice:pässword"), 401),
        ("Basic ???", 401),
        ("Basic é", 401),
        ("Bearer bearer-old", 200),
        ("bearer  bearer-new ", 200),
        ("Bearer", 401),
        ("Bearer bearer-other", 401),
        ("Digest bearer-new", 401),
        ("bearer-new", 401),
        ("", 401),
    ],
)
def test_basic_and_bearer_are_checked(route: Route, authorization: str, expected: int) -> None:
    assert _status(CLOSED, route, f"/{route}", Authorization=authorization) == expected


def test_challenges_name_the_schemes_of_the_route() -> None:
    refusal = _refusal(CLOSED, "raw", "/raw")
    assert refusal is not None
    assert refusal.headers == [
        ("WWW-Authenticate", 'Basic realm="turnbus", charset="UTF-8"'),
        ("WWW-Authenticate", 'Bearer realm="turnbus"'),
    ]
    only_tokens = _refusal(Access(Credentials(token_key=KEY)), "console", "/")
    assert only_tokens is not None
    assert (only_tokens.status, only_tokens.headers) == (403, [])


@pytest.mark.parametrize("place", ["query", "header"])
@pytest.mark.parametrize(
    ("route", "scope", "extra", "expected"),
    [
        ("raw", "audio", "", 200),
        ("raw", "both", "", 200),
        ("raw", "events", "", 403),
        ("raw", "audio", "&events=0", 200),
        ("raw", "audio", "&events=1", 403),
        ("raw", "audio", "&events=0&events=true", 403),
        ("raw", "both", "&events=1", 200),
        ("events", "events", "", 200),
        ("events", "both", "", 200),
        ("events", "audio", "", 403),
        ("asterisk", "both", "", 401),
        ("freeswitch", "both", "", 401),
        ("console", "both", "", 401),
    ],
)
def test_token_gives_its_rights(
    place: Literal["query", "header"], route: Route, scope: Scope, extra: str, expected: int
) -> None:
    token = issue(KEY, "a", scope, 60)
    if place == "query":
        assert _status(CLOSED, route, f"/x?token={token}{extra}", "a") == expected
    else:
        sent = {"Authorization": f"Bearer {token}"}
        assert _status(CLOSED, route, f"/x?{extra}", "a", **sent) == expected


def test_token_serves_its_session_until_its_expiry() -> None:
    for session, expires_at, expected in [
        ("a", 60, 200),
        (None, 60, 200),
        ("b", 60, 403),
        ("A", 60, 403),
        ("a", 50, 401),
    ]:
        target = f"/raw?token={issue(KEY, 'a', 'audio', expires_at)}"
        assert _status(CLOSED, "raw", target, session) == expected
    other = issue(b"x" * 32, "a", "audio", 60)
    assert _status(CLOSED, "raw", f"/raw?token={other}", "a") == 401


def test_two_tokens_are_refused() -> None:
    token = issue(KEY, "a", "audio", 60)
    assert _status(CLOSED, "raw", f"/raw?token={token}&token={token}", "a") == 401


def test_token_claims_are_those_of_a_valid_token() -> None:
    def session(target: str) -> str | None:
        claims = CLOSED.token_claims(Request(target, Headers(), "127.0.0.1"), 50)
        return claims.session if claims else None

    assert session(f"/raw?token={issue(KEY, 'a', 'audio', 60)}") == "a"
    assert session(f"/raw?token={issue(KEY, 'a', 'audio', 40)}") is None
    assert session("/raw") is None


@pytest.mark.parametrize("name", ["Authorization", "Host", "Origin", "X-Twilio-Signature"])
def test_header_that_is_sent_twice_is_refused(name: str) -> None:
    headers = Headers(
        [("Host", "a.example"), ("X-Twilio-Signature", "x"), (name, "b"), (name, "c")]
    )
    routes: tuple[Route, ...] = ("twilio", "raw")
    for route in routes:
        refusal = CLOSED.authorize(Request("/x", headers, ""), route, None, 50)
        used = {
            "twilio": {"Host", "Origin", "X-Twilio-Signature"},
            "raw": {"Authorization", "Origin"},
        }
        if name in used[route]:
            assert refusal is not None
            assert refusal.status == 400


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8090", 200),
        ("127.0.0.1:8090", 200),
        ("[::1]:8090", 200),
        ("evil.example:8090", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("user@localhost", 403),
        ("localhost/x", 403),
        ("localhost:x", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_loopback_names_are_served_openly(host: str, expected: int) -> None:
    assert _status(OPEN, "raw", "/raw", Host=host) == expected
    assert _status(Access(Credentials()), "raw", "/raw", Host=host) == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8090", 200),
        ("HTTP://LOCALHOST:8090", 200),
        ("http://localhost", 403),
        ("https://localhost:8443", 403),
        ("http://evil.example:8090", 403),
        ("http://localhost:8090.evil.example", 403),
        ("http://localhost:8090@evil.example", 403),
        ("https://app.example", 200),
        ("https://app.example.evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_origins_are_refused(origin: str, expected: int) -> None:
    access = Access(Credentials(), origins=frozenset({"https://app.example"}), is_loopback=True)
    assert _status(access, "raw", "/raw", Host="localhost:8090", Origin=origin) == expected
    anyone = Access(Credentials(), origins=frozenset({"*"}), is_loopback=True)
    assert _status(anyone, "raw", "/raw", Host="localhost:8090", Origin=origin) == 200


def test_origin_of_the_public_url_is_the_gateways_own() -> None:
    access = Access(CLOSED.credentials, public_url="https://a.example/base")
    sent = {"Host": "10.0.0.1:8090", "Authorization": "Bearer bearer-new"}
    assert _status(access, "raw", "/raw", Origin="https://a.example", **sent) == 200
    assert _status(access, "raw", "/raw", Origin="https://b.example", **sent) == 403


def test_default_port_of_an_origin_may_be_left_out() -> None:
    sent = {"Origin": "https://a.example", "Authorization": "Bearer bearer-new"}
    assert _status(CLOSED, "raw", "/raw", Host="a.example:443", **sent) == 200
    assert _status(CLOSED, "raw", "/raw", Host="a.example:80", **sent) == 403


def test_credentials_show_no_secret() -> None:
    text = repr(CLOSED)
    assert not any(secret in text for secret in SECRETS)


header_text = st.text("\t" + "".join(map(chr, [*range(32, 127), *range(128, 256)])), max_size=40)
names = st.sampled_from(
    [
        "Authorization",
        "Host",
        "Origin",
        "X-Twilio-Signature",
        "X-Twilio-Webhooks-Signature-Settings",
    ]
)
values = st.one_of(
    header_text,
    st.builds("{} {}".format, st.sampled_from(["Basic", "Bearer", "bearer"]), header_text),
    st.builds("http://{}".format, header_text),
    st.binary(max_size=30).map(lambda data: f"Basic {base64.b64encode(data).decode()}"),
)
targets = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    st.builds("/raw?token={}".format, st.text(st.characters(max_codepoint=126), max_size=60)),
    st.builds("/raw?token={}.{}&events={}".format, header_text, header_text, header_text),
)


@given(
    st.sampled_from([OPEN, CLOSED, Access(CLOSED.credentials, public_url="https://a.example")]),
    st.sampled_from(("twilio", *ROUTES)),
    targets,
    st.lists(st.tuples(names, values), max_size=5),
    st.one_of(st.none(), st.text(max_size=10)),
)
@example(CLOSED, "raw", "/raw?token=.", [], None)
@example(CLOSED, "raw", "/raw?token=%ff%fe.%ff", [], None)
def test_any_request_is_refused_or_served(
    access: Access,
    route: Route,
    target: str,
    headers: list[tuple[str, str]],
    session: str | None,
) -> None:
    request = Request(target, Headers(headers), "127.0.0.1")
    refusal = access.authorize(request, route, session, 50)
    access.token_claims(request, 50)
    if refusal is None:
        assert access is OPEN, "no request has a valid credential by chance"
    else:
        shown = f"{refusal.message}{refusal.headers}"
        assert refusal.status in {400, 401, 403}
        assert not any(secret in shown for secret in SECRETS)
        sent = [value for _, value in headers if len(value) > 20]
        assert not any(value in shown for value in sent)
