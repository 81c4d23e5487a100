"""What commands print when Redis refuses: one line and exit code 1, in a task group too."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from tests.support.certificates import Authority, add_tls
from tests.support.embedded_cluster import EmbeddedCluster
from tests.support.polling import PATIENCE_S
from worker.local.emulator.engines.script import ScriptEngine
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis

PUSH = "push - --session s --speed 0"
READERS = ("sessions", "dead", "drain w", "watch", "watch --from-start")


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.fixture(scope="module")
def server(portal: BlockingPortal) -> Iterator[EmbeddedRedis]:
    with portal.wrap_async_context_manager(EmbeddedRedis.start()) as server:
        yield server


@pytest.fixture
def admin(server: EmbeddedRedis) -> Iterator[Any]:
    """A client with all rights. Its changes are undone after the test."""
    with Redis.from_url(server.url) as admin:
        yield admin
        admin.config_set("maxmemory", 0)
        admin.config_set("min-replicas-to-write", 0)
        admin.replicaof("NO", "ONE")
        admin.acl_deluser("u")
        admin.flushall()


def refused(command: str, url: str) -> str:
    """Run a command that Redis refuses; return the line it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", *command.split()],
        input=bytes(6_400),
        capture_output=True,
        env=os.environ | {"TURNBUS_REDIS_URL": url},
        timeout=PATIENCE_S,
        check=False,
    )
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert line.startswith("turnbus: ")
    return line


def test_push_reports_full_redis(server: EmbeddedRedis, admin: Any) -> None:
    admin.config_set("maxmemory", 1)
    line = refused(PUSH, server.url)
    assert "OutOfMemoryError" in line
    assert line.endswith("; raise its maxmemory, or make room")


def test_push_reports_missing_replicas(server: EmbeddedRedis, admin: Any) -> None:
    admin.config_set("min-replicas-to-write", 1)
    line = refused(PUSH, server.url)
    assert line.endswith("; reconnect its replicas, or lower min-replicas-to-write")


def test_push_reports_busy_script(server: EmbeddedRedis, admin: Any) -> None:
    admin.config_set("busy-reply-threshold", 1)
    with ThreadPoolExecutor() as pool:
        script = pool.submit(admin.eval, "while true do end", 0)
        try:
            line = refused(PUSH, server.url)
        finally:
            with Redis.from_url(server.url) as other:
                other.script_kill()
        with pytest.raises(ResponseError):
            script.result(PATIENCE_S)
    assert line.endswith("; wait for the script, or end it with SCRIPT KILL")


def test_push_and_end_report_read_only_replica(server: EmbeddedRedis, admin: Any) -> None:
    admin.xadd("stt:sessions", {"session": "s"})
    admin.replicaof("127.0.0.1", 1)
    for command in (PUSH, "end s"):
        assert refused(command, server.url).endswith(
            "; it is a replica: name its master, or sentinels that know it"
        )


@pytest.mark.parametrize(
    ("command", "right"),
    [
        (PUSH, "xadd"),
        ("end s", "xadd"),
        ("dead", "xrange"),
        ("watch", "xrevrange"),
        ("watch --from-start", "xread"),
        ("drain w", "hgetall"),
        ("dead --requeue 1-1", "xrange"),
    ],
)
def test_missing_command_right_is_reported(
    command: str, right: str, server: EmbeddedRedis, admin: Any
) -> None:
    admin.xadd("stt:sessions", {"session": "s"})
    admin.acl_setuser(
        "u", enabled=True, passwords="+p", keys=["*"], commands=["+@all", f"-{right}"]
    )
    line = refused(command, server.url.replace("://", "://u:p@"))
    assert f"has no permissions to run the '{right}' command" in line
    assert ":p@" not in line


def test_missing_key_right_is_reported(server: EmbeddedRedis, admin: Any) -> None:
    admin.acl_setuser("u", enabled=True, passwords="+p", keys=["stt:sessions"], commands=["+@all"])
    line = refused(PUSH, server.url.replace("://", "://u:p@"))
    assert "No permissions to access a key" in line


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (PUSH, "stt:sessions"),
        ("end s", "stt:sessions"),
        ("sessions", "stt:sessions"),
        ("dead", "stt:dead"),
        ("watch", "stt:{0}:turns"),
        ("drain w", "stt:workers"),
    ],
)
def test_key_of_wrong_type_is_reported(
    command: str, key: str, server: EmbeddedRedis, admin: Any
) -> None:
    admin.set(key, "x")
    line = refused(command, server.url)
    assert "WRONGTYPE" in line
    assert line.endswith("(another program has a key stt:...: set TURNBUS_PREFIX)")


@pytest.mark.parametrize("command", [PUSH, *READERS])
def test_wrong_password_is_reported(command: str, server: EmbeddedRedis) -> None:
    line = refused(command, server.url.replace("://", "://x:hunter2@"))
    assert "AuthenticationError" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("command", [PUSH, "sessions"])
def test_plain_url_of_tls_port_is_reported(
    command: str, portal: BlockingPortal, redis_7_binary: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    start = EmbeddedRedis.start(binary=redis_7_binary)
    with portal.wrap_async_context_manager(start) as server:
        port = portal.call(add_tls, server, authority, authority.issue("localhost"))
        line = refused(command, f"redis://localhost:{port}/0")
        assert "rediss://" in line
        line = refused(command, f"rediss://localhost:{port}/0")
        assert "certificate refused" in line


@pytest.mark.parametrize("command", [PUSH, "sessions"])
def test_server_that_is_not_redis_is_reported(command: str, portal: BlockingPortal) -> None:
    serve = TurnsServer.serve(ServerSettings(port=0), ScriptEngine())
    with portal.wrap_async_context_manager(serve) as other:
        assert "ConnectionError" in refused(command, f"redis://127.0.0.1:{other.port}/0")


def test_plain_url_of_cluster_is_reported(portal: BlockingPortal) -> None:
    with portal.wrap_async_context_manager(EmbeddedCluster.start()) as cluster:
        urls = {master.port: master.url for master in cluster.masters}
        with Redis.from_url(cluster.masters[0].url) as node:
            slots: Any = node.execute_command("CLUSTER", "SLOTS")

        def owner(key: str) -> str:
            """Return the URL of the node that holds a key or a hash tag."""
            slot = key_slot(key.encode())
            return next(
                urls[port] for first, last, (_, port, *_), *_ in slots if first <= slot <= last
            )

        sessions = owner("stt:sessions")
        elsewhere = next(lane for lane in map(str, range(100)) if owner(lane) != sessions)
        for command, url in (
            (PUSH, next(url for url in urls.values() if url != sessions)),
            (f"{PUSH} --lane {elsewhere}", sessions),  # announced, then refused
            (f"watch --from-start --lane {elsewhere}", sessions),
            (f"watch --lane {elsewhere}", sessions),
        ):
            line = refused(command, url)
            assert "MovedError" in line
            assert line.endswith("; it is a cluster node: begin the URL with redis+cluster://")


def test_cluster_url_of_single_server_is_reported(server: EmbeddedRedis) -> None:
    line = refused(PUSH, server.url.replace("redis://", "redis+cluster://"))
    assert line.endswith("; it is not a cluster node: begin the URL with redis://")
