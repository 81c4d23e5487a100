"""The guard: each key of tokens counts, and the page needs a password beyond loopback."""

import base64
from pathlib import Path

import pytest
from websockets.datastructures import Headers

from worker.errors import SettingsError
from worker.ingest.guard import Guard, RequestRefusedError
from worker.ingest.request import Request
from worker.ingest.settings import IngestSettings
from worker.ingest.tokens import issue

NEW, OLD = "n" * 32, "o" * 32
NEVER = 4_000_000_000


def request(target: str, **headers: str) -> Request:
    lines = {"Host": "gateway.example", **headers}
    return Request(target, Headers(lines), "192.0.2.1")


def written(tmp_path: Path, name: str, *lines: str) -> str:
    (tmp_path / name).write_text("\n".join(lines))
    return str(tmp_path / name)


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@pytest.mark.parametrize("key", [NEW, OLD])
def test_token_of_each_key_names_its_session(key: str, tmp_path: Path) -> None:
    settings = IngestSettings(ingest_token_key_file=written(tmp_path, "keys", NEW, OLD))
    token = issue(key.encode(), "call-1", "audio", NEVER)
    claims = Guard(settings).check(request(f"/raw?token={token}"), "raw")
    assert claims is not None
    assert claims.session == "call-1"


@pytest.mark.parametrize("key", [NEW, OLD])
def test_refusal_is_of_the_key_that_signed(key: str, tmp_path: Path) -> None:
    settings = IngestSettings(ingest_token_key_file=written(tmp_path, "keys", NEW, OLD))
    token = issue(key.encode(), "call-1", "events", NEVER)
    with pytest.raises(RequestRefusedError) as refused:
        Guard(settings).check(request(f"/raw?token={token}"), "raw", "call-1")
    assert refused.value.refusal.status == 403
    assert str(refused.value) == "the token does not allow to send audio"


def test_page_needs_password_beyond_loopback(tmp_path: Path) -> None:
    settings = IngestSettings(
        ingest_listen="0.0.0.0:8090",
        ingest_basic_file=written(tmp_path, "basic", "ann:pass:word"),
    )
    guard = Guard(settings, console=True)
    guard.check_page(request("/", Authorization=basic("ann:pass:word")))
    for headers in ({}, {"Authorization": basic("ann:wrong")}):
        with pytest.raises(RequestRefusedError) as refused:
            guard.check_page(request("/", **headers))
        assert refused.value.refusal.status == 401
        assert any(name == "WWW-Authenticate" for name, _ in refused.value.refusal.headers)


def test_page_on_loopback_is_free(tmp_path: Path) -> None:
    settings = IngestSettings(ingest_bearer_file=written(tmp_path, "bearer", "secret"))
    Guard(settings, console=True).check_page(request("/"))


def test_added_routes_need_a_loopback_name_without_auth() -> None:
    guard = Guard(IngestSettings())
    assert guard.check(request("/control", Host="localhost:8090"), "console") is None
    with pytest.raises(RequestRefusedError):
        guard.check(request("/control"), "console")


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://localhost:3000", "http://127.0.0.1:8090", "file://"],
)
def test_added_routes_refuse_other_pages(origin: str) -> None:
    sent = request("/control", Host="localhost:8090", Origin=origin)
    with pytest.raises(RequestRefusedError) as refused:
        Guard(IngestSettings()).check(sent, "console")
    assert refused.value.refusal.status == 403


def test_page_beyond_loopback_requires_basic_file(tmp_path: Path) -> None:
    settings = IngestSettings(
        ingest_listen="0.0.0.0:8090", ingest_bearer_file=written(tmp_path, "bearer", "secret")
    )
    with pytest.raises(SettingsError, match="set TURNBUS_INGEST_BASIC_FILE"):
        Guard(settings, console=True)
    Guard(settings)


def test_rotation_to_a_line_without_password_keeps_the_users(tmp_path: Path) -> None:
    settings = IngestSettings(ingest_basic_file=written(tmp_path, "basic", "ann:secret"))
    guard = Guard(settings)
    written(tmp_path, "basic", "only-a-name")
    guard.check(request("/raw", Authorization=basic("ann:secret")), "raw")
    with pytest.raises(RequestRefusedError):
        guard.check(request("/raw", Authorization=basic("only-a-name:")), "raw")


def test_unusable_files_are_reported_together(tmp_path: Path) -> None:
    settings = IngestSettings(
        ingest_bearer_file=str(tmp_path / "none"),
        ingest_basic_file=written(tmp_path, "basic", "word"),
        ingest_token_key_file=written(tmp_path, "keys", "short"),
    )
    with pytest.raises(SettingsError) as caught:
        Guard(settings)
    names = [problem.partition(":")[0] for problem in caught.value.problems]
    assert names == [f"TURNBUS_INGEST_{name}_FILE" for name in ("BEARER", "BASIC", "TOKEN_KEY")]


def test_user_without_password_is_refused(tmp_path: Path) -> None:
    settings = IngestSettings(ingest_basic_file=written(tmp_path, "basic", "a:b", "secret-line"))
    with pytest.raises(SettingsError) as caught:
        Guard(settings)
    assert "each line must be USER:PASSWORD" in str(caught.value)
    assert "secret-line" not in str(caught.value)
