"""The master's address as sentinels report it."""

import pytest
from redis import exceptions

from tests.support.embedded_cluster import SERVICE, EmbeddedSentinel, client, execute
from worker.bus.client.connection import connect


async def test_any_reachable_sentinel_is_used(redis_sentinel: EmbeddedSentinel) -> None:
    port = redis_sentinel.sentinel.port
    async with connect(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/{SERVICE}") as redis:
        assert (await redis.info("server"))["process_id"] == redis_sentinel.master.pid


async def test_error_lists_the_reply_of_each_sentinel(redis_sentinel: EmbeddedSentinel) -> None:
    port = redis_sentinel.sentinel.port
    async with connect(f"redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:{port}/other") as redis:
        with pytest.raises(exceptions.ConnectionError, match="no sentinel knows the master") as why:
            await redis.ping()
    assert f"127.0.0.1:{port} does not know other" in str(why.value)
    assert "secret" not in str(why.value)


async def test_password_is_sent_to_sentinels_that_require_one() -> None:
    async with EmbeddedSentinel.start() as servers:
        for server in (servers.master, servers.replica):
            async with client(server) as admin:
                await admin.config_set("masterauth", "secret")
                await admin.config_set("requirepass", "secret")
        async with client(servers.sentinel) as admin:
            patient = ("down-after-milliseconds", 3_600_000)
            await execute(admin, "SENTINEL", "SET", SERVICE, "auth-pass", "secret", *patient)
        url = servers.url.replace("://", "://:secret@")
        async with connect(url) as redis:
            assert await redis.ping(), "the sentinel requires no password and receives none"
        async with client(servers.sentinel) as admin:
            await execute(admin, "ACL", "SETUSER", "default", "resetpass", ">secret")
        async with connect(url) as redis:
            assert await redis.ping()
        async with connect(servers.url) as redis:
            with pytest.raises(exceptions.ConnectionError, match="Authentication required"):
                await redis.ping()
