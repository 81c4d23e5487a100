"""Servers on which a worker cannot run: the worker logs the reason once and waits."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from schemas import Keys
from tests.support.acl import GuardedRedis, as_user, grant
from tests.support.embedded_cluster import SERVICE, EmbeddedCluster, client, execute
from tests.support.harness import KEY, PCM16, Harness, check_order, keys_of, words
from tests.support.odd_redis import Front
from tests.support.polling import eventually
from worker import worker as worker_module
from worker.bus import permissions
from worker.bus.client.connection import connect, describe, is_outage
from worker.bus.fitness import MAX_LINE_CHARACTERS, Server, lacks
from worker.cli import check
from worker.cli.check import Finding
from worker.local.emulator.engines.script import synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.redis import EmbeddedRedis
from worker.settings import Settings
from worker.worker import Worker

# -- server information


@pytest.mark.parametrize(
    ("about", "shown", "fits"),
    [
        ({"redis_version": "7.0.15"}, "Redis 7.0.15", True),
        ({"redis_version": "6.2.14"}, "Redis 6.2.14", False),
        ({"redis_version": "5.0"}, "Redis 5.0", False),
        ({"redis_version": 6.2}, "Redis 6.2", False),
        ({"redis_version": 8}, "Redis 8", True),
        ({"redis_version": "9.0.0-rc2"}, "Redis 9.0.0-rc2", True),
        ({"redis_version": "7.4.0-v1"}, "Redis 7.4.0-v1", True),
        ({"redis_version": "6.2.0-rc1"}, "Redis 6.2.0-rc1", False),
        ({"redis_version": "255.255.255"}, "Redis 255.255.255", True),
        ({"redis_version": ""}, "Redis of an unknown version", True),
        ({"redis_version": "unstable"}, "Redis unstable", True),
        ({"redis_version": "v7"}, "Redis v7", True),
        ({"redis_version": "7.0\x1b[2J"}, "Redis 7.0[2J", True),
        ({"redis_version": "9" * 99}, f"Redis {'9' * 40}", True),
        ({}, "Redis of an unknown version", True),
        ({"__raw__": ["hello"]}, "Redis of an unknown version", True),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0-rc2"}, "Valkey 9.0.0-rc2", True),
        ({"redis_version": "7.4.0", "dragonfly_version": "df-v1.23.0"}, "Dragonfly 7.4.0", True),
        ({"redis_version": "6.3.4", "server_name": "keydb"}, "Redis 6.3.4", False),
        ({"redis_version": "7.2.4", "redis_mode": "sentinel"}, "Redis 7.2.4", False),
        ({"redis_version": "9.0.0", "server_mode": "sentinel"}, "Redis 9.0.0", False),
    ],
)
def test_server_parses_info(about: dict[str, Any], shown: str, fits: bool) -> None:
    server = Server.read(about)
    assert server.shown == shown
    assert (server.fault is None) == fits


@given(
    st.dictionaries(
        st.sampled_from(["redis_version", "valkey_version", "redis_mode", "maxmemory_policy"]),
        st.none() | st.integers() | st.floats() | st.text() | st.dictionaries(st.text(), st.text()),
    )
)
def test_server_parses_any_info(about: dict[str, Any]) -> None:
    server = Server.read(about)
    assert server.shown.isprintable()
    assert server.fault is None or server.fault.isprintable()


# -- error replies


@pytest.mark.parametrize(
    ("error", "lasting", "expected"),
    [
        (
            exceptions.ResponseError("unknown command 'EVALSHA', with args beginning with: 'a' "),
            True,
            "ResponseError: unknown command EVALSHA; run Redis 7.0 or later, or Valkey, with none",
        ),
        (
            exceptions.ResponseError("unknown subcommand 'CONSUMERS'. Try XINFO HELP."),
            True,
            "ResponseError: unknown subcommand 'CONSUMERS'. Try XINFO HELP.; run Redis 7.0",
        ),
        (
            exceptions.ResponseError(
                "Error compiling script (new function): user_script:1: unexpected symbol near '#'"
            ),
            True,
            "ResponseError: Error compiling script",
        ),
        (
            exceptions.ResponseError("This instance has cluster support disabled"),
            True,
            "ResponseError: This instance has cluster support disabled; it is not a cluster node",
        ),
        (
            exceptions.ResponseError("DB index is out of range"),
            True,
            "ResponseError: DB index is out of range; use an existing one",
        ),
        (
            exceptions.InvalidResponse('Protocol error, got "H" as reply type byte'),
            True,
            'InvalidResponse: Protocol error, got "H" as reply type byte; the server is not Redis',
        ),
        (
            exceptions.MovedError("1234 127.0.0.1:7000"),
            False,
            "MovedError: 1234 127.0.0.1:7000; it is a cluster node: begin the URL with redis+",
        ),
        (
            exceptions.ReadOnlyError("You can't write against a read only replica."),
            False,
            "ReadOnlyError: You can't write against a read only replica.; it is a replica",
        ),
        (exceptions.OutOfMemoryError("command not allowed"), False, "OutOfMemoryError: command"),
        (exceptions.ConnectionError(""), False, "ConnectionError"),
        (
            exceptions.ConnectionError("max number of clients reached"),
            False,
            "ConnectionError: max number of clients reached; raise maxclients",
        ),
        (
            exceptions.AuthenticationError("WRONGPASS no"),
            False,
            "AuthenticationError: WRONGPASS no;",
        ),
    ],
)
def test_each_error_has_an_instruction(error: Exception, lasting: bool, expected: str) -> None:
    assert lacks(error) == lasting
    assert is_outage(error)
    assert describe(error).startswith(expected)


@pytest.mark.parametrize("expected", ["WRONGTYPE no", "NOGROUP no", "no such key", "syntax error"])
def test_errors_of_one_key_are_not_server_problems(expected: str) -> None:
    error = exceptions.ResponseError(expected)
    assert not lacks(error)
    assert not is_outage(error)


def test_long_error_is_cut_to_its_first_sentence() -> None:
    error = exceptions.ResponseError(f"DENIED It is so. {'It is so long. ' * 99}")
    assert describe(error) == "ResponseError: DENIED It is so"
    assert len(describe(exceptions.ResponseError("x" * 9_999))) < MAX_LINE_CHARACTERS + 40
    assert describe(exceptions.ResponseError("a\r\nb")) == "ResponseError: a"


# -- the worker and the check command


class Odd(NamedTuple):
    """A Redis on which a worker cannot run."""

    url: str
    expected: str
    """Expected log text."""
    repair: Callable[[], Any] | None = None
    """Makes the server usable."""
    lasting: bool = True
    """Whether the server is found to be unusable, and not only unavailable."""


Kind: TypeAlias = Callable[[], AbstractAsyncContextManager[Odd]]


@contextmanager
def _directives(text: str) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Yield the path of a file of additional directives, and a function that replaces them."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "more.conf"
        file.write_text(text)
        yield str(file), file.write_text


@asynccontextmanager
async def _configured(
    text: str, **options: Any
) -> AsyncIterator[tuple[EmbeddedRedis, Callable[[str], Awaitable[None]]]]:
    """Run a server with additional directives; yield a function that restarts it with others."""
    with _directives(text) as (file, replace):
        async with EmbeddedRedis.start(config={"include": file}, **options) as server:

            async def restart(text: str) -> None:
                replace(text)
                await server.restart()

            yield server, restart


@asynccontextmanager
async def renamed() -> AsyncIterator[Odd]:
    async with _configured(RENAME) as (server, restart):
        repair = partial(restart, "")
        yield Odd(server.url, "the server has no EVALSHA: run Redis 7.0 or later", repair)


@asynccontextmanager
async def fronted(expected: str, **odd: Any) -> AsyncIterator[Odd]:
    async with EmbeddedRedis.start() as server, Front.open(server) as front:
        for name, value in odd.items():
            setattr(front, name, value)

        def repair() -> None:
            front.answer = front.greeting = None
            front.info = {}

        yield Odd(f"redis://127.0.0.1:{front.port}/0", expected, repair)


def http() -> AbstractAsyncContextManager[Odd]:
    answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
    return fronted("the server is not Redis", answer=answer)


def ssh() -> AbstractAsyncContextManager[Odd]:
    return fronted("the server is not Redis", answer=b"SSH-2.0-OpenSSH_9.2\r\n")


def protected() -> AbstractAsyncContextManager[Odd]:
    expected = b"-DENIED Redis is running in protected mode because it is. In this mode it is.\r\n"
    return fronted("set a password there", greeting=expected)


def old() -> AbstractAsyncContextManager[Odd]:
    info = {"redis_version": "6.2.14", "valkey_version": None}
    return fronted("Redis 6.2.14 is too old; run Redis 7.0 or later", info=info)


@asynccontextmanager
async def node() -> AsyncIterator[Odd]:
    """A cluster node, addressed as a single server."""
    async with EmbeddedCluster.start() as cluster:
        yield Odd(cluster.masters[0].url, "begin the URL with redis+cluster://")


@asynccontextmanager
async def alone() -> AsyncIterator[Odd]:
    """A single server, addressed as a cluster."""
    async with EmbeddedRedis.start() as server:
        url = f"redis+cluster://127.0.0.1:{server.port}"
        yield Odd(url, "it is not a cluster node: begin the URL with redis://")


@asynccontextmanager
async def watcher() -> AsyncIterator[Odd]:
    """A sentinel, addressed as a server."""
    async with EmbeddedRedis.start_sentinel() as sentinel:
        yield Odd(sentinel.url, "it is a sentinel: begin the URL with redis+sentinel://")


@asynccontextmanager
async def no_watcher() -> AsyncIterator[Odd]:
    """A server, addressed as a sentinel."""
    async with EmbeddedRedis.start() as server:
        url = f"redis+sentinel://127.0.0.1:{server.port}/{SERVICE}"
        yield Odd(url, f"127.0.0.1:{server.port}: it is not a sentinel", lasting=False)


@asynccontextmanager
async def replica() -> AsyncIterator[Odd]:
    async with EmbeddedRedis.start() as master:
        config = {"replicaof": f"127.0.0.1 {master.port}"}
        async with EmbeddedRedis.start(config=config) as server, client(server) as redis:

            async def repair() -> None:
                await execute(redis, "REPLICAOF", "NO", "ONE")

            yield Odd(server.url, "it is a replica: name its master", repair, lasting=False)


@asynccontextmanager
async def database() -> AsyncIterator[Odd]:
    async with EmbeddedRedis.start() as server:
        url = server.url.removesuffix("/0") + "/99"
        yield Odd(url, "DB index is out of range; use an existing one")


@asynccontextmanager
async def full() -> AsyncIterator[Odd]:
    """A server that accepts no more clients than those connected."""
    async with EmbeddedRedis.start() as server, client(server) as redis:
        await redis.config_set("maxclients", 1)

        async def repair() -> None:
            await redis.config_set("maxclients", 1_000)

        yield Odd(
            server.url, "max number of clients reached; raise maxclients", repair, lasting=False
        )


@asynccontextmanager
async def guarded() -> AsyncIterator[Odd]:
    async with GuardedRedis.start() as server, connect(server.url) as admin:
        await execute(admin, "ACL", "SETUSER", "worker", "-evalsha")

        async def repair() -> None:
            await execute(admin, "ACL", "SETUSER", "worker", "+evalsha")

        yield Odd(as_user(server.url, "worker"), "grant this user, on keys stt:*: EVALSHA", repair)


@asynccontextmanager
async def taken() -> AsyncIterator[Odd]:
    """A worker's key has another type."""
    async with EmbeddedRedis.start() as server, client(server) as redis:
        await redis.set("stt:sessions", "another program's")

        async def repair() -> None:
            await redis.delete("stt:sessions")

        yield Odd(server.url, "another program has the key stt:sessions, a string", repair)


RENAME = 'rename-command EVALSHA ""'
KINDS = [renamed, http, ssh, protected, old, node, alone, watcher, no_watcher, replica, database]
KINDS += [full, guarded, taken]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_worker_waits_for_a_usable_server(
    kind: Kind, stt: TurnsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "FITNESS_INTERVAL_S", 0.05)
    async with kind() as odd, anyio.create_task_group() as tasks:
        settings = Settings(redis_url=odd.url, stt_url=stt.url, admin_addr="")
        worker = Worker(settings, keys_of(settings))
        tasks.start_soon(worker.run)

        def reason() -> str:
            return next((each for each in worker.readiness.reasons if odd.expected in each), "")

        found = await eventually(reason, f"a worker that reports {odd.expected}")
        assert found.startswith("redis: ")
        assert not worker.readiness.ready
        assert (worker.health.unfit is not None) == odd.lasting
        await anyio.sleep(0.5)
        logged = [each for each in caplog.messages if each.startswith("Redis ")]
        assert len(logged) == 1
        assert odd.expected in logged[0]
        assert not [record for record in caplog.records if record.exc_info]
        if odd.repair is not None:
            result = odd.repair()
            if result is not None:
                await result
            await eventually(lambda: worker.readiness.ready, "a worker that is ready")
            assert worker.health.unfit is None
        worker.stop()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_check_reports_what_the_worker_logs(
    kind: Kind, stt: TurnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kind() as odd:
        found = await _check(odd, stt, monkeypatch)
    failed = [finding.detail for finding in found if finding.result == "fail"]
    assert any(odd.expected in detail for detail in failed)


async def _check(odd: Odd, stt: TurnsServer, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setenv("CARTESIA_API_KEY", KEY)
    settings = Settings(redis_url=odd.url, stt_url=stt.url, admin_addr="")
    found: list[Finding] = []
    assert await check._check(settings, found.append)
    return found


@pytest.mark.parametrize("version", ["9.0.0-rc2", "7.4.0-v1", "255.255.255", "", "unstable", None])
async def test_check_accepts_any_version(
    version: str | None, stt: TurnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fronted("", info={"redis_version": version, "valkey_version": None}) as odd:
        found = await _check(odd, stt, monkeypatch)
    assert {finding.result for finding in found} == {"ok"}
    shown = f"Redis {version}" if version else "Redis of an unknown version"
    assert any(finding.detail.startswith(f"{shown} at ") for finding in found)


async def test_session_resumes_when_a_server_is_usable_again(
    stt: TurnsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server restarts without a command, and then restarts unchanged."""
    monkeypatch.setattr(worker_module, "FITNESS_INTERVAL_S", 0.05)
    async with _configured("", append_only=True) as (server, begin_again):

        async def restart(directives: str) -> None:
            await begin_again(directives)
            grant([server.url], "stt")

        grant([server.url], "stt")
        async with Harness.open(server.url, "stt", stt.url) as harness, harness.worker() as worker:
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1], PCM16), end=False)
            await restart(RENAME)
            await eventually(lambda: worker.health.unfit, "a server found to be unusable")
            assert not worker.readiness.ready
            await harness.play("call-1", synthesize_words([2], PCM16), end=False)
            await restart("")
            await eventually(lambda: worker.readiness.ready, "a worker that is ready")
            await harness.play("call-1", synthesize_words([3], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
    logged = [each for each in caplog.messages if each.startswith("Redis is ") and "usable" in each]
    assert [each.split()[2] for each in logged] == ["not", "usable"]
    assert logged[1].endswith(" rejected)")
    assert not [record for record in caplog.records if record.exc_info]


async def test_full_redis_is_not_unusable() -> None:
    async with EmbeddedRedis.start(maxmemory=1_000) as server, connect(server.url) as redis:
        assert await permissions.unfitness(redis, Keys("stt")) is None
        missing = await permissions.find_missing(redis, Keys("stt"))
        assert str(missing).startswith("XADD: OutOfMemoryError: ")
