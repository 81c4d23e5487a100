"""`turnbus token`: only the token, or one line that says what is missing."""

import time
from pathlib import Path

import pytest

from worker.cli.main import main
from worker.ingest.tokens import verify

KEY = "k" * 32


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n{'old' * 20}\n")
    monkeypatch.setenv("TURNBUS_INGEST_TOKEN_KEY_FILE", str(file))
    return file


@pytest.mark.usefixtures("key_file")
def test_token_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--session", "call-1", "--ttl", "60", "--scope", "events"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    now = time.time()
    claims = verify(KEY.encode(), printed.out.rstrip("\n"), now)
    assert (claims.session, claims.scope) == ("call-1", "events")
    assert claims.expires_at <= now + 60


@pytest.mark.usefixtures("key_file")
def test_token_is_for_both_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--session", "call-1"]) == 0
    claims = verify(KEY.encode(), capsys.readouterr().out.strip(), time.time())
    assert claims.scope == "both"


@pytest.mark.parametrize(
    "options", [["--session", "*"], ["--session", "a", "--ttl", "0"], ["--scope", "x"], []]
)
@pytest.mark.usefixtures("key_file")
def test_bad_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["token", *options])
    assert end.value.code == 2
    assert capsys.readouterr().out == ""


def test_missing_key_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--session", "call-1"]) == 2
    assert capsys.readouterr().err == (
        "turnbus: TURNBUS_INGEST_TOKEN_KEY_FILE: not set; name a file with the key; "
        "openssl rand -hex 32 makes one\n"
    )


def test_short_key_is_one_line_without_it(
    key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file.write_text("short-key")
    assert main(["token", "--session", "call-1"]) == 2
    error = capsys.readouterr().err
    assert "fewer than 32 bytes" in error
    assert "short-key" not in error
