"""API keys: where they come from, which are refused, and what a changed file does."""

import logging
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.settings import Settings
from worker.stt.keys import CHECK_INTERVAL_S, ApiKey, load_keys

BOTH = Settings(stt_providers="cartesia,flux")
DEEPGRAM_KEY = "0123456789abcdef" * 2 + "89abcdef"


class Clock:
    """A monotonic clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        """Move past the interval between two looks at a file."""
        self.now += CHECK_INTERVAL_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("first\n")
    return path


@pytest.fixture
def key(file: Path, clock: Clock) -> ApiKey:
    return ApiKey.from_file("flux", "TURNBUS_DEEPGRAM_API_KEY_FILE", file, clock)


def replace(file: Path, text: str) -> None:
    """Put another file in its place, as editors and orchestrators do."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


def api_key(settings: Settings, env: Mapping[str, str]) -> str:
    """Return Cartesia's key as it is now."""
    return load_keys(settings, env).usable["cartesia"].current()


def test_key_file_overrides_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    env = {"CARTESIA_API_KEY": "from-env"}
    assert api_key(Settings(), env) == "from-env"
    for settings in (
        Settings(stt_api_key_file=str(file)),
        Settings(cartesia_api_key_file=str(file)),
    ):
        assert api_key(settings, env) == "from-file"
    file.write_text("\ufefffrom-file\r\n", "utf-8")
    assert api_key(Settings(stt_api_key_file=str(file)), env) == "from-file"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "the file cannot be read: No such file or directory"),
        (b"\n", "the file is empty; write the API key into it"),
        (b"hunter2 hunter2", "an API key is one word of printable ASCII"),
        (b"hunter2\nhunter2\n", "an API key is one word of printable ASCII"),
        (b"hunter2\xff", "the file does not hold an API key"),
        (b"\xff\xfeh\0u\0n\0t\0e\0r\x002\0", "the file does not hold an API key"),
        (b'"hunter2"\n', "must be without quotation marks"),
        (b"CARTESIA_API_KEY=hunter2\n", "must be the API key alone"),
        (b"01234567hunter2", None),
    ],
)
def test_unusable_key_file_is_reported(
    tmp_path: Path, content: bytes | None, what: str | None
) -> None:
    file = tmp_path / "hunter2"
    if content is not None:
        file.write_bytes(content)
    settings, env = Settings(stt_api_key_file=str(file)), {"CARTESIA_API_KEY": "unused"}
    if what is None:
        assert api_key(settings, env) == "01234567hunter2"
        return
    with pytest.raises(SettingsError) as caught:
        api_key(settings, env)
    assert str(caught.value).startswith(f"TURNBUS_STT_API_KEY_FILE: {what}")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_missing_key_is_reported() -> None:
    for find in (api_key, load_keys):
        with pytest.raises(SettingsError, match=r"^CARTESIA_API_KEY: no API key"):
            find(Settings(), {"CARTESIA_API_KEY": " "})


def test_each_provider_has_its_key() -> None:
    env = {"CARTESIA_API_KEY": "sk_car_one", "DEEPGRAM_API_KEY": DEEPGRAM_KEY}
    keys = load_keys(BOTH, env)
    assert {name: key.current() for name, key in keys.usable.items()} == {
        "cartesia": "sk_car_one",
        "flux": DEEPGRAM_KEY,
    }
    assert keys.skipped == ()
    assert [*load_keys(Settings(), env).usable] == ["cartesia"]


def test_provider_without_key_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    keys = load_keys(BOTH, {"CARTESIA_API_KEY": "k"})
    assert [*keys.usable] == ["cartesia"]
    keys.log_skipped()
    assert caplog.text.endswith(
        "provider flux: skipped, because it has no API key; put it into DEEPGRAM_API_KEY, or into "
        "a file that TURNBUS_DEEPGRAM_API_KEY_FILE names\n"
    )


def test_all_unusable_keys_are_reported_together(tmp_path: Path) -> None:
    settings = Settings(
        stt_providers="cartesia,flux",
        cartesia_api_key_file=str(tmp_path / "absent"),
        deepgram_api_key_file=str(tmp_path),
    )
    with pytest.raises(SettingsError) as caught:
        load_keys(settings, {})
    assert caught.value.problems == (
        "TURNBUS_CARTESIA_API_KEY_FILE: the file cannot be read: No such file or directory",
        "TURNBUS_DEEPGRAM_API_KEY_FILE: the file cannot be read: Is a directory",
    )
    with pytest.raises(SettingsError) as caught:
        load_keys(BOTH, {})
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "CARTESIA_API_KEY",
        "DEEPGRAM_API_KEY",
    ]


@pytest.mark.parametrize(
    ("variable", "key", "other"),
    [("CARTESIA_API_KEY", DEEPGRAM_KEY, "flux"), ("DEEPGRAM_API_KEY", "sk_car_one", "cartesia")],
)
def test_key_of_other_provider_is_refused(variable: str, key: str, other: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_keys(BOTH, {variable: key})
    assert str(caught.value).startswith(f"{variable}: holds a key of provider {other}; put it into")
    assert key not in str(caught.value)


def test_older_and_newer_file_setting_conflict(file: Path) -> None:
    settings = Settings(stt_api_key_file=str(file), cartesia_api_key_file=str(file))
    with pytest.raises(SettingsError, match=r"^TURNBUS_STT_API_KEY_FILE: is the older name of "):
        load_keys(settings, {})


def test_changed_file_is_read_again(file: Path, key: ApiKey, clock: Clock) -> None:
    replace(file, "second")
    assert key.current() == "first", "the file was looked at less than a second ago"
    clock.advance()
    assert key.current() == "second"
    file.write_text("third-in-the-same-file")
    clock.advance()
    assert key.current() == "third-in-the-same-file"


def test_unchanged_file_is_not_read_again(file: Path, key: ApiKey, clock: Clock) -> None:
    stamp = file.stat()
    with file.open("r+") as opened:
        opened.write("other")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    clock.advance()
    assert key.current() == "first"


@pytest.mark.parametrize("content", [None, "", "two words", "sk_car_hunter2"])
def test_last_good_key_stays_in_use(
    content: str | None,
    file: Path,
    key: ApiKey,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    if content is None:
        file.unlink()
    else:
        replace(file, content)
    for _ in range(3):
        clock.advance()
        assert key.current() == "first"
    (line,) = caplog.messages
    assert line.startswith(
        "provider flux: the last good key stays in use: TURNBUS_DEEPGRAM_API_KEY_FILE: "
    )
    assert "hunter2" not in line
    replace(file, "second")
    clock.advance()
    assert key.current() == "second"
    assert caplog.messages[1:] == ["provider flux: the API key was read again"]


def test_repr_hides_key(key: ApiKey) -> None:
    assert repr(key) == "ApiKey('flux', from TURNBUS_DEEPGRAM_API_KEY_FILE)"
    assert "sk_car_one" not in repr(load_keys(Settings(), {"CARTESIA_API_KEY": "sk_car_one"}))
