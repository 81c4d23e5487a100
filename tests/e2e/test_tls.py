"""TLS to Redis with a private authority, and to the provider with another private one."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from redis import exceptions
from redis.asyncio.connection import SSLConnection

from schemas.turns import Event
from tests.support.acl import PASSWORD, grant
from tests.support.certificates import Authority, Certificate, add_tls, behind_tls
from tests.support.embedded_cluster import SERVICE, EmbeddedCluster, client, execute
from tests.support.harness import KEY, PCM16, Harness, Place, check_order, words
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import connect
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.redis import EmbeddedRedis, free_port

Kind: TypeAlias = Callable[[Path, Authority], AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def plain(binary: Path, authority: Authority) -> AsyncIterator[Place]:
    async with EmbeddedRedis.start(binary=binary) as server:
        port = await add_tls(server, authority, authority.issue("localhost"))
        yield Place(f"rediss://localhost:{port}/0", (server.url,))


@asynccontextmanager
async def cluster(binary: Path, authority: Authority) -> AsyncIterator[Place]:
    """A cluster whose nodes announce the name in their certificate instead of their address."""
    async with EmbeddedCluster.start(binary=binary) as servers:
        certificate = authority.issue("localhost")
        ports = {await _join(node, authority, certificate) for node in servers.masters}
        urls = [f"rediss+cluster://localhost:{port}" for port in ports]
        with anyio.fail_after(30):
            for url in urls:
                while await _nodes(f"{url}?ssl_ca_certs={authority.file}") != {
                    ("localhost", port) for port in ports
                }:
                    await anyio.sleep(0.05)
        yield Place(urls[0], tuple(node.url for node in servers.masters))


async def _join(node: EmbeddedRedis, authority: Authority, certificate: Certificate) -> int:
    port = await add_tls(node, authority, certificate)
    async with client(node) as redis:
        await execute(
            *(redis, "CONFIG", "SET", "tls-cluster", "yes", "cluster-announce-tls-port", port),
            *("cluster-announce-hostname", "localhost"),
            *("cluster-preferred-endpoint-type", "hostname"),
        )
    return port


async def _nodes(url: str) -> set[tuple[str, int]]:
    """Return the addresses of the masters, as reported by the node at a URL."""
    async with connect(url) as redis:
        assert isinstance(redis, ClusterClient)
        places = [node.connection_pool.connection_kwargs for node in await redis.masters()]
    return {(place["host"], place["port"]) for place in places}


@asynccontextmanager
async def sentinel(binary: Path, authority: Authority) -> AsyncIterator[Place]:
    certificate = authority.issue("localhost", "127.0.0.1")
    config = certificate.directives(authority.file, free_port())
    async with (
        EmbeddedRedis.start(binary=binary) as server,
        EmbeddedRedis.start_sentinel(binary=binary, config=config) as watcher,
        client(watcher) as redis,
    ):
        port = await add_tls(server, authority, certificate)
        await execute(redis, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", port, 1)
        url = f"rediss+sentinel://localhost:{config['tls-port']}/{SERVICE}"
        yield Place(url, (server.url,))


ON_EACH_KIND = pytest.mark.parametrize("kind", [plain, cluster, sentinel])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority that issued Redis's certificates."""
    return Authority(tmp_path, "redis")


@pytest.fixture
async def stt_url(
    stt: TurnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """The provider. The environment names its authority."""
    authority = Authority(tmp_path, "stt")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with behind_tls(stt.url, authority.issue("localhost")) as url:
        yield url


class Commands:
    """Runs `turnbus` as a process."""

    def __init__(self, redis_url: str, stt_url: str) -> None:
        self._env = {
            **os.environ,
            "TURNBUS_REDIS_URL": redis_url,
            "TURNBUS_STT_URL": stt_url,
            "TURNBUS_ADMIN_ADDR": "",
            "CARTESIA_API_KEY": KEY,
        }

    async def __call__(self, *arguments: str, sound: bytes = b"") -> list[Any]:
        """Return a command's JSON lines."""
        command = [sys.executable, "-m", "worker", *arguments, "--json"]
        done = await anyio.run_process(command, input=sound, env=self._env, check=False)
        assert not done.stderr
        return [msgspec.json.decode(line) for line in done.stdout.splitlines()]

    async def check(self) -> dict[str, tuple[str, str]]:
        """Return the result and the detail of each check."""
        return {each["check"]: (each["result"], each["detail"]) for each in await self("check")}


@ON_EACH_KIND
async def test_session_over_tls(
    kind: Kind, redis_7_binary: Path, authority: Authority, stt_url: str, tmp_path: Path
) -> None:
    sound = (
        synthesize_words([1, 2, 3], PCM16)
        + synthesize_silence(1_000, PCM16)
        + synthesize_words([4], PCM16)
    )
    async with kind(redis_7_binary, authority) as place:
        url = f"{place.url}?ssl_ca_certs={authority.file}"
        grant(place.masters, "stt")
        turnbus = Commands(url, stt_url)
        async with (
            Harness.open(url, "stt", stt_url) as harness,
            harness.worker_process("one", tmp_path / "one"),
        ):
            # In chunks of whole words: a late chunk splits none.
            await turnbus("push", "-", "--session", "call-1", "--chunk-ms", "200", sound=sound)
            events = (await harness.until_ended("call-1"))["call-1"]
        check_order(events)
        assert words(events) == [1, 2, 3, 4]
        watched = await turnbus("watch", "--from-start", "--until-ended")
        assert msgspec.convert(watched, list[Event]) == events
        findings = await turnbus.check()
        assert {result for result, _ in findings.values()} == {"ok"}


@ON_EACH_KIND
async def test_unknown_authority_is_rejected(
    kind: Kind, redis_7_binary: Path, authority: Authority, stt_url: str
) -> None:
    async with kind(redis_7_binary, authority) as place:
        url = place.url.replace("://", f"://:{PASSWORD}@")
        findings = await Commands(url, stt_url).check()
    result, detail = findings["redis"]
    assert result == "fail"
    assert "certificate refused: " in detail
    assert "; name your own authority's file: ?ssl_ca_certs=FILE in the Redis URL" in detail
    assert PASSWORD not in detail
    assert findings["service"][0] == "ok"


async def test_nodes_that_announce_uncertified_addresses(
    redis_7_binary: Path, authority: Authority
) -> None:
    async with cluster(redis_7_binary, authority) as place:
        for url in place.masters:
            async with connect(url) as redis:
                await redis.config_set("cluster-preferred-endpoint-type", "ip")
        url = f"{place.url}?ssl_ca_certs={authority.file}"
        async with connect(url) as redis:
            fault = "not valid for '127.0.0.1'; connect by a name that the certificate has"
            with pytest.raises(exceptions.ConnectionError, match=fault):
                await redis.get("a")
        async with connect(f"{url}&ssl_check_hostname=false") as redis:
            await redis.get("a")


async def test_redis_that_requires_a_client_certificate(
    redis_7_binary: Path, authority: Authority
) -> None:
    async with EmbeddedRedis.start(binary=redis_7_binary) as server:
        port = await add_tls(server, authority, authority.issue("localhost"))
        async with client(server) as admin:
            await admin.config_set("tls-auth-clients", "yes")
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={authority.file}"
        async with connect(url) as redis:
            with pytest.raises(exceptions.ConnectionError):
                await redis.ping()
        shown = authority.issue("worker")
        async with connect(f"{url}&ssl_certfile={shown.chain}&ssl_keyfile={shown.key}") as redis:
            assert await redis.ping()


async def test_files_are_read_once_and_again_after_a_rejection(
    redis_7_binary: Path, authority: Authority, tmp_path: Path
) -> None:
    known = tmp_path / "known.pem"
    known.write_bytes(Authority(tmp_path, "former").file.read_bytes())
    async with (
        plain(redis_7_binary, authority) as place,
        connect(f"{place.url}?ssl_ca_certs={known}") as redis,
    ):
        with pytest.raises(exceptions.ConnectionError, match="certificate refused"):
            await redis.ping()
        known.write_bytes(authority.file.read_bytes())
        async with redis.client() as one, redis.client() as two:
            assert await one.ping()
            assert await two.ping()
            assert isinstance(one.connection, SSLConnection)
            assert isinstance(two.connection, SSLConnection)
            assert one.connection.ssl_context.get() is two.connection.ssl_context.get()


async def test_encryption_without_certificate_checks(
    redis_7_binary: Path, authority: Authority
) -> None:
    async with (
        plain(redis_7_binary, authority) as place,
        connect(f"{place.url}?ssl_cert_reqs=none") as redis,
    ):
        assert await redis.ping()


async def test_tls_to_a_port_without_tls(
    redis_7_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.bus.client.connection._SOCKET_TIMEOUT_S", 0.2)
    async with (
        EmbeddedRedis.start(binary=redis_7_binary) as server,
        connect(server.url.replace("redis://", "rediss://")) as redis,
    ):
        fault = f"TLS with 127.0.0.1:{server.port}: no answer in time; a port without TLS"
        with pytest.raises(exceptions.TimeoutError, match=fault):
            await redis.ping()
