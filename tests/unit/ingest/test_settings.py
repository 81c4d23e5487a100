"""Settings of the gateway: names, values, and those that need another one."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.ingest.settings import IngestSettings
from worker.settings import Settings, load, load_ingest


def faults(env: dict[str, str], file: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_ingest(env, file)
    return caught.value.problems


def test_settings_default_without_input() -> None:
    assert load_ingest({}) == (Settings(), IngestSettings())
    settings = IngestSettings()
    assert settings.listen == ("127.0.0.1", 8090)
    assert settings.audiosocket is None
    assert not settings.has_auth
    assert settings.origins == frozenset()


def test_both_kinds_come_from_one_file(tmp_path: Path) -> None:
    file = tmp_path / "turnbus.toml"
    file.write_text('prefix = "p"\ningest_chunk_ms = 60\ningest_grace_s = 2\n')
    settings, gateway = load_ingest({"TURNBUS_INGEST_GRACE_S": "3"}, file)
    assert (settings.prefix, gateway.ingest_chunk_ms, gateway.ingest_grace_s) == ("p", 60, 3.0)


def test_worker_ignores_values_of_the_gateway() -> None:
    assert load({"TURNBUS_INGEST_CHUNK_MS": "7", "TURNBUS_INGEST_LISTEN": "?"}) == Settings()


def test_unknown_name_gets_near_one_of_either_kind() -> None:
    found = faults({"TURNBUS_INGEST_LISTN": "1", "TURNBUS_MAX_SESSION": "1"})
    assert found == (
        "TURNBUS_INGEST_LISTN: no such setting; did you mean TURNBUS_INGEST_LISTEN?",
        "TURNBUS_MAX_SESSION: no such setting; did you mean TURNBUS_MAX_SESSIONS?",
    )


def test_all_errors_are_reported_together() -> None:
    env = {"TURNBUS_LEASE_MS": "1", "TURNBUS_INGEST_CHUNK_MS": "0", "TURNBUS_INGEST_BUFFER": "9"}
    assert [line.partition(":")[0] for line in faults(env)] == [
        "TURNBUS_INGEST_BUFFER",
        "TURNBUS_LEASE_MS",
        "TURNBUS_INGEST_CHUNK_MS",
    ]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("LISTEN", "8090", "must be HOST:PORT or [IPV6]:PORT"),
        ("LISTEN", "", "must be HOST:PORT or [IPV6]:PORT"),
        ("AUDIOSOCKET", "9092", "must be HOST:PORT or [IPV6]:PORT, or empty for off"),
        ("AUDIOSOCKET_ALLOW", "10.1.0.0/16, x", "must be networks such as 10.1.0.0/16, with comm"),
        ("AUDIOSOCKET_ALLOW", "10.1.2.3/16", "must be networks such as 10.1.0.0/16, with commas"),
        ("PUBLIC_URL", "app.example.com", "must be http://HOST:PORT or https://HOST:PORT"),
        ("PUBLIC_URL", "https://a/b?c=d", "takes no parameters"),
        ("ORIGINS", "app.example.com", "must be origins such as https://app.example.com, with c"),
        ("ORIGINS", "https://a.com/path", "must be origins such as https://app.example.com, wi"),
        ("CHUNK_MS", "10", "must be a whole number from 20 to 1000, not '10'"),
        ("BUFFER_S", "0", "must be a number from 1 to 600, not '0'"),
        ("GRACE_S", "-1", "must be a number from 0 to 600, not '-1'"),
        ("MAX_CALLS", "0", "must be a whole number from 1 to 100000, not '0'"),
    ],
)
def test_wrong_value_is_one_line_that_names_setting(name: str, value: str, what: str) -> None:
    (line,) = faults({f"TURNBUS_INGEST_{name}": value})
    assert line.startswith(f"TURNBUS_INGEST_{name}: {what}")


@pytest.mark.parametrize("listen", ["0.0.0.0:8090", "[::]:8090", "192.0.2.1:80", "gateway:80"])
def test_listening_beyond_loopback_needs_auth(listen: str, tmp_path: Path) -> None:
    env = {"TURNBUS_INGEST_LISTEN": listen}
    (line,) = faults(env)
    assert line.startswith(f"TURNBUS_INGEST_LISTEN: {listen} is not a loopback address: ")
    assert "TURNBUS_INGEST_BEARER_FILE" in line
    _, settings = load_ingest({**env, "TURNBUS_INGEST_BEARER_FILE": "tokens"})
    assert settings.has_auth
    file = tmp_path / "t.toml"
    file.write_text(f'ingest_listen = "{listen}"\n')
    (line,) = faults({}, file)
    assert line.startswith(f"`ingest_listen` in {file}: {listen} is not a loopback address")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:8090", "localhost:8090", "127.9.9.9:1"])
def test_loopback_needs_no_auth(listen: str) -> None:
    load_ingest({"TURNBUS_INGEST_LISTEN": listen})


def test_audiosocket_beyond_loopback_needs_networks() -> None:
    env = {"TURNBUS_INGEST_AUDIOSOCKET": "0.0.0.0:9092"}
    (line,) = faults(env)
    assert line.startswith("TURNBUS_INGEST_AUDIOSOCKET_ALLOW: is required with ")
    _, settings = load_ingest({**env, "TURNBUS_INGEST_AUDIOSOCKET_ALLOW": " 10.1.0.0/16, ::1 "})
    assert settings.audiosocket_allow == (ip_network("10.1.0.0/16"), ip_network("::1/128"))
    assert settings.audiosocket == ("0.0.0.0", 9092)


def test_audiosocket_on_loopback_takes_loopback() -> None:
    _, settings = load_ingest({"TURNBUS_INGEST_AUDIOSOCKET": "127.0.0.1:9092"})
    assert settings.audiosocket_allow == (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def test_origins_are_a_list() -> None:
    _, settings = load_ingest({"TURNBUS_INGEST_ORIGINS": "https://a.com, http://b.com:81,"})
    assert settings.origins == {"https://a.com", "http://b.com:81"}
    assert load_ingest({"TURNBUS_INGEST_ORIGINS": "*"})[1].origins == {"*"}
