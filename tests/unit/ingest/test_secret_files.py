"""Files of secrets: their lines, their errors, and their changes."""

import logging
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.ingest.secret_files import MAX_BYTES, SecretFile

VARIABLE = "TURNBUS_INGEST_BEARER_FILE"


def error_of(file: Path, min_bytes: int = 1) -> str:
    with pytest.raises(SettingsError) as caught:
        SecretFile(str(file), VARIABLE, min_bytes)
    return str(caught.value)


def test_each_line_is_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("\ufeffone \r\n\n two\n")
    assert SecretFile(str(file), VARIABLE).secrets == ("one", "two")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "the file cannot be read: No such file or directory"),
        (b"", "the file holds no secret; write one a line"),
        (b" \n\n", "the file holds no secret; write one a line"),
        (b"\xff\xfe", "the file is not UTF-8 text"),
        (b"x" * (MAX_BYTES + 1), f"the file is larger than {MAX_BYTES} bytes"),
    ],
)
def test_unusable_file_is_named_by_variable(
    content: bytes | None, what: str, tmp_path: Path
) -> None:
    file = tmp_path / "secrets"
    if content is not None:
        file.write_bytes(content)
    assert error_of(file) == f"{VARIABLE}: {what}"


def test_short_key_is_refused_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{'k' * 32}\nshort-key\n")
    text = error_of(file, 32)
    assert "fewer than 32 bytes" in text
    assert "short-key" not in text


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("old")
    secrets = SecretFile(str(file), VARIABLE)
    file.write_text("old\nnewer")
    assert secrets.secrets == ("old", "newer")


def test_secrets_stay_valid_without_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secrets"
    file.write_text("secret-1")
    secrets = SecretFile(str(file), VARIABLE)
    file.unlink()
    with caplog.at_level(logging.ERROR):
        assert secrets.secrets == ("secret-1",)
        assert secrets.secrets == ("secret-1",)
    assert len(caplog.records) == 1
    assert "secret-1" not in caplog.text
    file.write_text("secret-2")
    assert secrets.secrets == ("secret-2",)
