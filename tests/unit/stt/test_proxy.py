"""The provider through an HTTP proxy: which proxy is used, and how its refusals are reported."""

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from schemas import Encoding
from tests.support.certificates import Authority, behind_tls
from tests.support.harness import KEY, PCM16, Harness, check_order, words
from tests.support.holes import HOLES, black_hole
from tests.support.polling import eventually
from tests.support.proxies import ConnectProxy
from worker.errors import SettingsError, SttCredentialsError, SttError, SttTransientError
from worker.local.emulator.engines.script import ScriptEngine, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import free_port
from worker.stt import websocket as stt_socket
from worker.stt.cartesia import CARTESIA
from worker.stt.provider import Endpoint, StreamSettings
from worker.stt.proxy import MAX_HEAD_BYTES, find_proxy
from worker.urls import provider_address

URL = "wss://api.provider.test/stt/turns/websocket"
HOST = "api.provider.test"
"""A name that only the proxy resolves."""
SECRET = "s3cr:t/?#%"
QUOTED = "s3cr%3At%2F%3F%23%25"
SETTINGS = StreamSettings(model="ink-2", encoding=Encoding.PCM_S16LE, sample_rate=16_000)


# -- selection of the proxy


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, "p:3128"),
        ({"https_proxy": "http://p:3128/"}, "p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "p:3128"),
        ({"HTTPS_PROXY": " http://p "}, "p:80"),
        ({"HTTPS_PROXY": "https://p"}, "p:443"),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "[::1]:3128"),
        ({"HTTPS_PROXY": f"http://me:{QUOTED}@p:3128"}, "p:3128"),
        ({"HTTPS_PROXY": "http://me@p:3128"}, "p:3128"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "b:2"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, None),
        ({"ALL_PROXY": "http://a:1"}, "a:1"),
        ({"all_proxy": "http://a:1"}, "a:1"),
        ({"ALL_PROXY": "socks5://a:1", "HTTPS_PROXY": "http://b:2"}, "b:2"),
        ({"WSS_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "a:1"),
        ({"HTTP_PROXY": "http://a:1", "http_proxy": "http://b:2"}, None),
        ({"HTTPS_PROXY": ""}, None),
    ],
)
def test_find_proxy_follows_the_environment(env: dict[str, str], address: str | None) -> None:
    proxy = find_proxy(URL, env)
    assert (proxy.address if proxy else None) == address
    assert QUOTED not in repr(proxy)
    assert SECRET not in repr(proxy)


@pytest.mark.parametrize(
    ("url", "exempt", "used"),
    [
        (URL, "", True),
        (URL, "*", False),
        (URL, HOST, False),
        (URL, "API.Provider.Test", False),
        (URL, "other.test, provider.test", False),
        (URL, "other.test .provider.test", False),
        (URL, "*.provider.test", False),
        (URL, "rovider.test", True),
        (URL, "www.api.provider.test", True),
        (URL, f"{HOST}:443", False),
        (URL, f"{HOST}:8443", True),
        (URL, ",. ,:443", True),
        ("wss://10.1.2.3/stt", "10.0.0.0/8", False),
        ("wss://10.1.2.3/stt", "10.1.2.3", False),
        ("wss://10.1.2.3/stt", "10.1.2.4,192.168.0.0/16,::/0", True),
        ("wss://[fd00::1]/stt", "fd00::/8", False),
        ("wss://[fd00::1]/stt", "[fd00::1]", False),
        ("ws://127.0.0.1:8765/stt", "", False),
        ("wss://localhost:8765/stt", "", True),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_find_proxy_obeys_no_proxy(url: str, exempt: str, used: bool, name: str) -> None:
    env = {"HTTPS_PROXY": "http://p:3128", name: exempt}
    assert (find_proxy(url, env) is not None) == used


@pytest.mark.parametrize(
    "value",
    [
        f"http://me:{QUOTED}@",
        f"http://me:{QUOTED}@p:99999",
        f"http://me:{QUOTED}@p:port",
        f"http://me:{SECRET}@p:3128",
        f"http://me:{QUOTED}%ff@p:3128",
        f"http://me:{QUOTED}@p:3128/path",
        f"http://me:{QUOTED}@p:3128?a=b",
        f"ftp://me:{QUOTED}@p:3128",
        f"socks5h://me:{QUOTED}@p:1080",
        f"SOCKS5://me:{QUOTED}@p:1080",
        f"http://me:{QUOTED}@a..b:3128",
        f"http://me:{QUOTED}@{'a' * 64}:3128",
        "http://",
        "http://[::1",
    ],
)
def test_find_proxy_error_omits_url(value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        find_proxy(URL, {"https_proxy": value})
    assert str(refused.value).startswith("https_proxy: ")
    assert "s3cr" not in str(refused.value)


# -- connections through it


@asynccontextmanager
async def provider(authority: Authority) -> AsyncIterator[tuple[str, dict[str, tuple[str, int]]]]:
    """Serve turns under a name; yield their URL, and the proxy's name table."""
    settings = ServerSettings(port=0, api_keys=frozenset({KEY}))
    async with (
        TurnsServer.serve(settings, ScriptEngine()) as stt,
        behind_tls(stt.url, authority.issue(HOST)) as url,
    ):
        place = provider_address(url)
        yield url.replace("localhost", HOST), {f"{HOST}:{place[1]}": ("127.0.0.1", place[1])}


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A certificate authority that this process trusts."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setattr(stt_socket, "_tls", stt_socket._tls.__wrapped__)
    return authority


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "established",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nProxy-Agent : x\r\n\r\n",
    ],
)
def test_proxy_carries_socket(
    authority: Authority, established: bytes, scheme: str, use_uvloop: bool
) -> None:
    certificate = authority.issue("127.0.0.1") if scheme == "https" else None

    async def converse() -> list[str]:
        async with (
            provider(authority) as (url, known),
            ConnectProxy.serve(known, certificate) as server,
        ):
            server.established = established
            env = {"HTTPS_PROXY": f"{scheme}://me:{QUOTED}@127.0.0.1:{server.port}"}
            service = Endpoint(url, "2026-03-01", KEY, find_proxy(url, env))
            async with await CARTESIA.open(service, SETTINGS) as stream:
                assert stream.request_id
            assert "me:" not in repr(service)
            assert [head.split()[1] for head in server.heads] == [*known]
            return server.heads

    (head,) = anyio.run(converse, backend_options={"use_uvloop": use_uvloop})
    assert head.startswith("CONNECT ")
    userinfo = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert f"Proxy-Authorization: Basic {userinfo}" in head
    assert KEY not in head, "the key is for the provider alone"


REFUSALS = [
    (
        b"HTTP/1.1 407 Whatever\r\nContent-Length: 0\r\n\r\n",
        SttCredentialsError,
        "HTTP 407 Proxy Auth",
    ),
    (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", SttCredentialsError, "HTTP 403 Forbidden"),
    (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", SttTransientError, "HTTP 502 Bad Gateway"),
    (b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nno!", SttTransientError, "HTTP 503 Service"),
    (b"HTTP/1.1 599 No\r\n\r\n", SttTransientError, "HTTP 599"),
    (b"HTTP/1.1 407\r\n\r\n", SttCredentialsError, "HTTP 407"),
    (b"HTTP/1.0 407 No\r\nProxy-Agent : x\r\n\r\n", SttCredentialsError, "HTTP 407"),
    (b"HTTP/1.1 407 No\r\nA: %b\r\n\r\n" % (b"x" * 9_000), SttCredentialsError, "HTTP 407"),
    (b"HTTP/1.1 407 No\r\nA: %b" % (b"x" * MAX_HEAD_BYTES), SttTransientError, "no HTTP answer"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", SttTransientError, "gave no HTTP answer"),
    (b"", SttTransientError, "gave no HTTP answer"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), REFUSALS)
async def test_proxy_refusal_names_proxy(answer: bytes, kind: type[SttError], words: str) -> None:
    async with ConnectProxy.serve({}) as server:
        server.answer = answer
        env = {"HTTPS_PROXY": f"http://me:{QUOTED}@127.0.0.1:{server.port}"}
        service = Endpoint(URL, "2026-03-01", KEY, find_proxy(URL, env))
        with pytest.raises(kind, match=words) as refused:
            await CARTESIA.open(service, SETTINGS)
    assert f"proxy 127.0.0.1:{server.port} " in str(refused.value)
    assert "s3cr" not in f"{refused.value}{refused.value.advice}"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "gave no HTTP answer"),
        (b"HTTP/1.1 502 No\r\nContent-Length: 9\r\n\r\n", "refuses: HTTP 502"),
    ],
)
async def test_proxy_reset_is_a_transient_error(answer: bytes, words: str) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        service = Endpoint(URL, "2026-03-01", KEY, find_proxy(URL, {"HTTPS_PROXY": address}))
        with pytest.raises(SttTransientError, match=f"proxy {address} {words}"):
            await CARTESIA.open(service, SETTINGS)


async def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stt_socket, "CONNECT_TIMEOUT_S", 0.3)
    service = Endpoint(URL, "2026-03-01", KEY, find_proxy(URL, {"HTTPS_PROXY": "127.0.0.1:1"}))
    with pytest.raises(
        SttTransientError, match=r"ConnectionRefusedError: .* proxy 127\.0\.0\.1:1: "
    ):
        await CARTESIA.open(service, SETTINGS)
    address = f"{HOLES[0]}:{free_port()}"
    service = Endpoint(URL, "2026-03-01", KEY, find_proxy(URL, {"HTTPS_PROXY": address}))
    with black_hole(int(address.partition(":")[2])), pytest.raises(SttTransientError) as late:
        await CARTESIA.open(service, SETTINGS)
    assert str(late.value) == f"proxy: no answer from {address} within 0.3 s"


async def test_worker_is_unready_until_proxy_allows_connect(
    harness: Harness, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.session.connector.CREDENTIALS_RETRY_S", 0.1)
    async with (
        behind_tls(harness.stt_url, authority.issue(HOST)) as url,
        ConnectProxy.serve({}) as server,
    ):
        port = provider_address(url)[1]
        server.known = {f"{HOST}:{port}": ("127.0.0.1", port)}
        server.answer = REFUSALS[0][0]
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        async with harness.worker(stt_url=url.replace("localhost", HOST)) as worker:
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
            reasons = await eventually(lambda: worker.readiness.reasons, "a worker not ready")
            assert reasons[0].startswith(
                f"stt: the proxy 127.0.0.1:{server.port} refuses: HTTP 407"
            )
            server.answer = None
            await harness.append("call-1", end="1")
            events = (await harness.until_ended("call-1"))["call-1"]
            assert worker.readiness.ready
        check_order(events)
        assert words(events) == [1, 2]
