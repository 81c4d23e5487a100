"""Settings: precedence, one line per error, and hidden secrets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import TurnConfig
from tests.support.certificates import Authority
from worker.errors import SettingsError
from worker.settings import Settings, load
from worker.urls import check_redis_url, join_host_port, parse_servers, provider_address, redacted


def faults(env: dict[str, str], file: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(env, file)
    return caught.value.problems


def fault(env: dict[str, str]) -> str:
    (only,) = faults(env)
    return only


def test_settings_default_without_input() -> None:
    settings = load({"PATH": "/bin", "CARTESIA_API_KEY": "k"})
    assert settings == Settings()
    assert settings.worker_id
    assert settings.turn_config == TurnConfig()
    assert settings.admin == ("127.0.0.1", 8088)


def test_environment_overrides_file_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "turnbus.toml"
    file.write_text('prefix = "file"\nmax_sessions = 7\nreplay_speed = 2\nlog_format = "json"\n')
    settings = load({"TURNBUS_PREFIX": "env", "TURNBUS_DRAIN_S": "1.5"}, file)
    assert (settings.prefix, settings.max_sessions, settings.log_format) == ("env", 7, "json")
    assert (settings.replay_speed, settings.drain_s, settings.lease_ms) == (2.0, 1.5, 5000)


def test_turn_detection_and_disabled_admin() -> None:
    settings = load(
        {
            "TURNBUS_STT_TURN_START_THRESHOLD": "0.85",
            "TURNBUS_STT_TURN_END_TIMEOUT_MS": "640",
            "TURNBUS_ADMIN_ADDR": "",
        }
    )
    assert settings.turn_config == TurnConfig(turn_start_threshold=0.85, turn_end_timeout_ms=640)
    assert settings.admin is None
    assert load({"TURNBUS_ADMIN_ADDR": "[::1]:0"}).admin == ("::1", 0)
    assert load({"TURNBUS_ADMIN_ADDR": "[::]:8088"}).admin == ("::", 8088)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("MAX_SESSIONS", "many", "must be a whole number from 1 to 100000, not 'many'"),
        ("MAX_SESSIONS", "", "must be a whole number from 1 to 100000, not ''"),
        ("LEASE_MS", "1999", "must be a whole number from 2000 to 600000, not '1999'"),
        ("DRAIN_S", "-1", "must be a number from 0 to 86400, not '-1'"),
        ("DRAIN_S", "nan", "must be a number from 0 to 86400, not 'nan'"),
        ("SESSION_IDLE_S", "inf", "must be a number from 1 to 604800, not 'inf'"),
        ("PARK_S", "180", "must be a number from 1 to 170, not '180'"),
        ("PREFIX", "a{b}", "must be 1 to 128 of A-Z a-z 0-9 . _ : -, not 'a{b}'"),
        ("WORKER_ID", "a b", "must be 1 to 128 of A-Z a-z 0-9 . _ : -, not 'a b'"),
        ("WORKER_ID", "a\x00b", "holds control characters, or is not UTF-8 text"),
        ("STT_API_KEY_FILE", "\udcff", "holds control characters, or is not UTF-8 text"),
        ("ADMIN_ADDR", "a..b:80", "a part of the host's name is empty, or longer than 63 charac"),
        ("TRACE_TRANSCRIPTS", "maybe", "must be true or false, not 'maybe'"),
        ("MAX_SESSIONS", "5s", "must be a whole number from 1 to 100000, not '5s'"),
        ("LOG_LEVEL", "loud", "must be one of debug, error, info, warning, not 'loud'"),
        ("STT_VERSION", "latest", "must be a date, YYYY-MM-DD, not 'latest'"),
        ("STT_MODEL", "", "must be a model's name, not ''"),
        ("STT_TURN_END_THRESHOLD", "0.9", "must be a number from 0.05 to 0.5, not '0.9'"),
        ("REPLAY_SPEED", "0.5", "must be 0 or at least 1: slower than real time never catches up"),
        ("ADMIN_ADDR", "8088", "must be HOST:PORT or [IPV6]:PORT, or empty for off"),
        ("ADMIN_ADDR", "::8088", "must be HOST:PORT or [IPV6]:PORT, or empty for off"),
        ("ADMIN_ADDR", "::1:8088", "must be HOST:PORT or [IPV6]:PORT, or empty for off"),
        ("ADMIN_ADDR", "localhost:99999", "must be HOST:PORT or [IPV6]:PORT, or empty for off"),
    ],
)
def test_wrong_value_is_one_line_that_names_setting(name: str, value: str, what: str) -> None:
    assert fault({f"TURNBUS_{name}": value}).startswith(f"TURNBUS_{name}: {what}")


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("LOG_LEVEL", "INFO", "info"),
        ("LOG_LEVEL", " Warning\n", "warning"),
        ("LOG_FORMAT", "JSON", "json"),
        *[("TRACE_TRANSCRIPTS", value, True) for value in ("True", "YES", "1", "on", " true ")],
        *[("TRACE_TRANSCRIPTS", value, False) for value in ("False", "no", "0", "OFF")],
        ("MAX_SESSIONS", "1_000", 1_000),
        ("MAX_SESSIONS", " 5 ", 5),
        ("MAX_SESSIONS", "5.0", 5),
        ("MAX_SESSIONS", "1e3", 1_000),
        ("PREFIX", " stt ", "stt"),
    ],
)
def test_value_spellings_are_accepted(name: str, value: str, read: object, tmp_path: Path) -> None:
    assert getattr(load({f"TURNBUS_{name}": value}), name.lower()) == read
    file = tmp_path / "t.toml"
    file.write_text(f"\ufeff{name.lower()} = {json.dumps(value)}", "utf-8")
    if isinstance(read, int) and not isinstance(read, bool):  # TOML has its own number types
        file.write_text(f"{name.lower()} = {value}")
    assert getattr(load({}, file), name.lower()) == read


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("REDIS_URL", "REDIS://:Pw@Host:6379/0", "redis://:Pw@Host:6379/0"),
        ("REDIS_URL", "Redis+Cluster://h", "redis+cluster://h"),
        ("STT_URL", "WSS://host/Path", "wss://host/Path"),
    ],
)
def test_url_schemes_can_be_in_capitals(name: str, value: str, read: str) -> None:
    assert getattr(load({f"TURNBUS_{name}": value}), name.lower()) == read


@pytest.mark.parametrize("url", ["Redis://h", "REDISS://h", "Redis+Cluster://h", "UNIX:///s"])
def test_redis_url_is_checked_in_small_letters(url: str) -> None:
    with pytest.raises(ValueError, match="must begin with redis://"):
        check_redis_url(url)


def test_version_can_be_toml_date(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("stt_version = 2026-04-02")
    assert load({}, file).stt_version == "2026-04-02"
    file.write_text("stt_version = 2026-04-02T00:00:00Z")
    with pytest.raises(SettingsError, match="must be a date, YYYY-MM-DD, not datetime"):
        load({}, file)


@pytest.mark.parametrize("variable", ["turnbus_prefix", "Turnbus_Prefix", "TURNBUS_prefix"])
def test_lowercase_variable_is_reported(variable: str) -> None:
    reason = "has no effect; names are in capitals: TURNBUS_PREFIX"
    assert fault({variable: "a"}) == f"{variable}: {reason}"
    assert load({"turnbus_home": "/", "turn": "x"}) == Settings()


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('max_session = 1\nlease_ms = "5000"\nstt_model = "ink-2"\n')
    env = {"TURNBUS_PARK_S": "x", "TURNBUS_REDIS": "y", "TURNBUS_QQQQ": "z"}
    assert faults(env, file) == (
        f"`max_session` in {file}: no such setting; did you mean max_sessions?",
        "TURNBUS_QQQQ: no such setting",
        "TURNBUS_REDIS: no such setting; did you mean TURNBUS_REDIS_URL?",
        f"`lease_ms` in {file}: must be a whole number from 2000 to 600000, not '5000'",
        "TURNBUS_PARK_S: must be a number from 1 to 170, not 'x'",
    )


def test_thresholds_must_decrease() -> None:
    env = {
        "TURNBUS_STT_TURN_EAGER_END_THRESHOLD": "0.4",
        "TURNBUS_STT_TURN_END_THRESHOLD": "0.45",
    }
    assert fault(env) == (
        "TURNBUS_STT_TURN_END_THRESHOLD: must be below `stt_turn_eager_end_threshold`"
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "cannot be read: No such file"), (b"a =", "is not TOML"), (b"\xff", "is not UTF-8")],
)
def test_unusable_file_is_reported(tmp_path: Path, content: bytes | None, what: str) -> None:
    file = tmp_path / "t.toml"
    if content is not None:
        file.write_bytes(content)
    found = faults({"TURNBUS_PARK_S": "x"}, file)
    assert found[0].startswith(f"{file}: {what}")
    assert found[1].startswith("TURNBUS_PARK_S")


def test_kubernetes_service_links_are_ignored() -> None:
    env = {
        "TURNBUS_PORT": "tcp://10.0.0.1:8088",
        "TURNBUS_PORT_8088_TCP_ADDR": "10.0.0.1",
        "TURNBUS_WORKER_SERVICE_HOST": "10.0.0.1",
        "TURNBUS_SERVICE_PORT_ADMIN": "8088",
    }
    assert load(env) == Settings()


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://localhost",
        "redis://:p%2Fw@[::1]:6380/3",
        "rediss://u:p@redis.example:6380/0?ssl_ca_certs={ca}&ssl_min_version=772",
        "rediss://h?ssl_cert_reqs=none&ssl_ca_path=/&ssl_check_hostname=false",
        "unix:///run/redis.sock?db=2",
        "redis+cluster://h",
        "rediss+cluster://u:p%2Fw@a:7000,b.example:7001,[::1]:7002?ssl_ca_certs={ca}",
        "redis+sentinel://a:26379,b/main/3",
        "rediss+sentinel://:p@a,[fd00::2]:26379/main?ssl_certfile={shown.chain}&ssl_keyfile={shown.key}",
    ],
)
def test_redis_url_is_parsed(url: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    url = url.format(ca=authority.file, shown=authority.issue("worker"))
    assert load({"TURNBUS_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "must begin with redis://"),
        ("localhost:6379", "must begin with redis://"),
        ("http://:hunter2@h", "must begin with redis://"),
        ("redis:///0", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]"),
        ("redis://h/zero", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]"),
        ("redis://:hunter2/x@h", "is not a URL; percent-encode"),
        (
            "redis://:hunter2@h:port",
            "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]; the port must",
        ),
        ("redis://:hunter2@h:99999", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]; the port"),
        ("redis://:hunter2@h:0", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]; the port"),
        ("redis://user:hunter2/0", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]; the port"),
        ("redis://:hunter2@::1:6379", "an IPv6 address must be in brackets"),
        ("redis://::1", "an IPv6 address must be in brackets"),
        ("redis://:hunter2@[::1", "an IPv6 address must be in brackets"),
        ("redis://[h]:6379", "what is in brackets must be an IPv6 address"),
        ("redis://:hunter2@h 1", "contains white space; percent-encode it (%20)"),
        ('"redis://:hunter2@h"', "must be without quotation marks"),
        ("HTTP://h", "must begin with redis://"),
        ("redis://a,b", "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB]; several servers are"),
        ("redis://:hunter2@a..b", "a part of the host's name is empty"),
        (f"redis://{'a' * 64}", "a part of the host's name is empty, or longer than 63"),
        ("redis+cluster://:hunter2@::1:7000", "an IPv6 address must be in brackets"),
        ("redis+sentinel://h:99999/m", "must be redis+sentinel://"),
        ("redis://h?password=hunter2", "options can only be db"),
        ("rediss://h?socket_timeout=5", "options can only be db, ssl_ca_certs"),
        ("redis://h?db=hunter2", "option db must be a number"),
        ("redis://h?ssl_ca_certs=hunter2", "must begin with rediss: it has TLS options"),
        ("redis+cluster://h?ssl_cert_reqs=none", "must begin with rediss: it has TLS options"),
        ("rediss://h?ssl_ca_certs=/hunter2", "ssl_ca_certs: No such file or directory"),
        ("rediss+cluster://h?ssl_ca_certs=/dev/null", "ssl_ca_certs: "),
        ("rediss+sentinel://h/m?ssl_ca_path=/hunter2", "ssl_ca_path: No such file or directory"),
        ("rediss://h?ssl_certfile=/hunter2", "ssl_certfile: No such file or directory"),
        ("rediss://h?ssl_keyfile=/hunter2", "ssl_keyfile requires ssl_certfile"),
        ("rediss://h?ssl_cert_reqs=hunter2", "ssl_cert_reqs must be none, optional or required"),
        (
            "rediss://h?ssl_min_version=1.2",
            "ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)",
        ),
        ("rediss://h?ssl_ciphers=hunter2", "ssl_ciphers: No cipher can be selected."),
        ("unix://", "must name a socket: unix:///PATH"),
        ("unix://:x/0", "is not a URL; percent-encode"),
        ("redis+cluster://:hunter2@h:", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://h:,i:1", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("rediss+sentinel://[::1]:/m", "must be rediss+sentinel://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://:hunter2@h/3", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://:hunter2@h:0", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://:hunter2@", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://a,,b", "must be redis+cluster://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+cluster://:hunter2/x@h", "is not a URL; percent-encode"),
        ("redis+cluster://h?db=2", "takes no options without TLS"),
        ("rediss+cluster://h?db=2", "options can only be ssl_ca_certs"),
        ("redis+sentinel://:hunter2@h", "must be redis+sentinel://[USER:PASSWORD@]HOST[:PORT]["),
        ("redis+sentinel://:hunter2@h//0", "must be redis+sentinel://[USER:PASSWORD@]HOST[:PORT]["),
        (
            "redis+sentinel://:hunter2@h/main/x",
            "must be redis+sentinel://[USER:PASSWORD@]HOST[:PORT][",
        ),
        (
            "redis+sentinel://:hunter2@h:port/m",
            "must be redis+sentinel://[USER:PASSWORD@]HOST[:PORT][",
        ),
        ("redis+sentinel://:hunter2@h/m#x", "is not a URL; percent-encode"),
    ],
)
def test_refused_redis_url_hides_password(url: str, what: str) -> None:
    found = fault({"TURNBUS_REDIS_URL": url})
    assert found.startswith(f"TURNBUS_REDIS_URL: {what}")
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("https://api.cartesia.ai", "must be wss://HOST[:PORT]/PATH"),
        ("wss:///stt", "must be wss://HOST[:PORT]/PATH"),
        ("wss://h:99999/stt", "must be wss://HOST[:PORT]/PATH; the port must be a number from 1"),
        ("wss://::1/stt", "an IPv6 address must be in brackets"),
        ("wss://h/s tt", "contains white space"),
        ("wss://a..b/stt", "a part of the host's name is empty"),
        ("wss://hunter2@h/stt", "takes no user, key or parameters"),
        ("wss://h/stt?access_token=hunter2", "takes no user, key or parameters"),
        ("ws://10.0.0.7/stt", "must be wss://: over ws:// the key would be sent unencrypted"),
        ("ws://stt.example/stt", "must be wss://: over ws:// the key would be sent unencrypted"),
    ],
)
def test_invalid_stt_url_is_refused(url: str, what: str) -> None:
    found = fault({"TURNBUS_STT_URL": url})
    assert found.startswith(f"TURNBUS_STT_URL: {what}")
    assert "hunter2" not in found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8090", "127.1.2.3", "[::1]:9"])
def test_plain_websocket_is_allowed_to_loopback_only(host: str) -> None:
    assert load({"TURNBUS_STT_URL": f"ws://{host}/stt"}).stt_url == f"ws://{host}/stt"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://[::1]:8765/stt", ("::1", 8765)),
        ("ws://[::1]/stt", ("::1", 80)),
        ("wss://[2001:db8::7]/stt", ("2001:db8::7", 443)),
        ("wss://stt.example:8443/stt", ("stt.example", 8443)),
    ],
)
def test_stt_address_is_derived_from_url(url: str, address: tuple[str, int]) -> None:
    assert provider_address(load({"TURNBUS_STT_URL": url}).stt_url) == address


@pytest.mark.parametrize(
    ("host", "joined"), [("::1", "[::1]:80"), ("127.0.0.1", "127.0.0.1:80"), ("h", "h:80")]
)
def test_ipv6_address_is_formatted_in_brackets(host: str, joined: str) -> None:
    assert join_host_port(host, 80) == joined


def test_ipv6_server_urls_are_accepted() -> None:
    servers = parse_servers(
        "rediss+sentinel://u:p@[fd00::1],[fd00::2]:7000/main/3?ssl_cert_reqs=none"
    )
    assert servers is not None
    assert servers.addresses == (("fd00::1", 26379), ("fd00::2", 7000))
    assert servers.url("fd00::3", 6379) == "rediss://u:p@[fd00::3]:6379/3?ssl_cert_reqs=none"


@pytest.mark.parametrize("name", ["STT_API_KEY", "API_KEY", "CARTESIA_API_KEY"])
def test_key_is_not_setting(name: str, tmp_path: Path) -> None:
    advice = "put it into CARTESIA_API_KEY, or into a file that TURNBUS_CARTESIA_API_KEY_FILE names"
    env_fault = fault({f"TURNBUS_{name}": "hunter2"})
    assert env_fault == f"TURNBUS_{name}: a key is not a setting; {advice}"
    file = tmp_path / "t.toml"
    file.write_text(f'{name.lower()} = "hunter2"')
    assert faults({}, file) == (f"`{name.lower()}` in {file}: a key is not a setting; {advice}",)


@pytest.mark.parametrize("name", ["STT_API_KEY_FILE", "STT_MODEL", "STT_URL", "PARK_S"])
def test_key_in_other_setting_is_not_printed(name: str) -> None:
    found = fault({f"TURNBUS_{name}": "sk_car_hunter2"})
    assert found.startswith(f"TURNBUS_{name}: holds an API key; put it into CARTESIA_API_KEY")
    assert "hunter2" not in found


DEEPGRAM_KEY = "0123456789abcdef" * 2 + "89abcdef"


@pytest.mark.parametrize("name", ["STT_MODEL", "STT_FLUX_URL", "PARK_S", "DEEPGRAM_API_KEY_FILE"])
@pytest.mark.parametrize("form", ["{}", "Token {}", "'{}'"])
def test_deepgram_key_in_setting_is_not_printed(name: str, form: str) -> None:
    found = fault({f"TURNBUS_{name}": form.format(DEEPGRAM_KEY)})
    assert found.startswith(f"TURNBUS_{name}: holds an API key; put it into DEEPGRAM_API_KEY")
    assert DEEPGRAM_KEY not in found


def test_deepgram_key_is_not_setting() -> None:
    assert fault({"TURNBUS_DEEPGRAM_API_KEY": DEEPGRAM_KEY}) == (
        "TURNBUS_DEEPGRAM_API_KEY: a key is not a setting; put it into DEEPGRAM_API_KEY, or into "
        "a file that TURNBUS_DEEPGRAM_API_KEY_FILE names"
    )


def test_digest_is_not_taken_for_key() -> None:
    url, file = f"redis://u:{DEEPGRAM_KEY}@redis:6379/0", f"/run/{DEEPGRAM_KEY}/key"
    settings = load({"TURNBUS_REDIS_URL": url, "TURNBUS_DEEPGRAM_API_KEY_FILE": file})
    assert (settings.redis_url, settings.deepgram_api_key_file) == (url, file)


@pytest.mark.parametrize(
    ("value", "providers"),
    [
        ("cartesia", ("cartesia",)),
        ("flux", ("flux",)),
        (" Flux , CARTESIA ", ("flux", "cartesia")),
        ("cartesia,flux", ("cartesia", "flux")),
    ],
)
def test_providers_are_names_in_order(value: str, providers: tuple[str, ...]) -> None:
    assert load({"TURNBUS_STT_PROVIDERS": value}).providers == providers


@pytest.mark.parametrize("value", ["", ",", "deepgram", "cartesia,", "cartesia flux", "a,flux"])
def test_unknown_provider_is_refused_with_the_list(value: str) -> None:
    assert fault({"TURNBUS_STT_PROVIDERS": value}) == (
        "TURNBUS_STT_PROVIDERS: must be names of providers, separated by commas: cartesia, flux, "
        f"not {value!r}"
    )


def test_provider_is_named_once() -> None:
    found = fault({"TURNBUS_STT_PROVIDERS": "flux,cartesia,FLUX"})
    assert found == "TURNBUS_STT_PROVIDERS: names a provider twice"


def test_flux_url_is_checked() -> None:
    found = fault({"TURNBUS_STT_FLUX_URL": "https://api.deepgram.com/v2/listen"})
    assert found == "TURNBUS_STT_FLUX_URL: must be wss://HOST[:PORT]/PATH"


def test_repr_hides_password() -> None:
    settings = load({"TURNBUS_REDIS_URL": "redis://user:hunter2@h:1/0"})
    assert "hunter2" not in repr(settings) + str(settings) + repr(settings.__rich_repr__())
    assert "redis_url='redis://***@h:1/0'" in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://u:p@h:1/2?ssl_ca_certs=x", "rediss://***@h:1/2"),
        ("redis://:a@b@h", "redis://***@h"),
        ("redis+cluster://u:p@a:1,b:2?ssl_ca_certs=x", "redis+cluster://***@a:1,b:2"),
        ("redis+sentinel://:p@a:1,b/main/0", "redis+sentinel://***@a:1,b/main/0"),
        ("unix:///run/r.sock?db=1", "unix:///run/r.sock"),
        ("nonsense", "***"),
    ],
)
def test_redis_url_is_redacted(url: str, shown: str) -> None:
    assert redacted(url) == shown


@given(
    st.text("abc:/?#@%[]", min_size=1).map("SECRET{}SECRET".format),
    st.sampled_from(["redis://u:{}@h/0", "redis://:{}@h:1/0?db=1", "redis://h/0?password={}"]),
)
def test_redacted_url_shows_no_part_of_password(password: str, template: str) -> None:
    assert "SECRET" not in redacted(template.format(password))
