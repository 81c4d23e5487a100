"""The commands an operator runs inside a worker's pod need no more rights than the worker has."""

import sys
from pathlib import Path

import anyio

from schemas.keys import Keys
from tests.deploy.test_acl import _users
from tests.stage import PCM16, Stage
from worker.bus.dead import refused
from worker.local.engines.script import say
from worker.local.server.server import TurnsServer


async def test_commands_as_the_workers_user(stt: TurnsServer, tmp_path: Path) -> None:
    async with _users(tmp_path, {}) as acl:
        says = Stage(await acl.connect("producer"), acl.url("worker"), "stt", stt.url)

        async def turnbus(*arguments: str) -> str:
            done = await anyio.run_process(
                [sys.executable, "-m", "worker", *arguments],
                env={"TURNBUS_REDIS_URL": acl.url("worker")},
            )
            return done.stdout.decode()

        async with says.worker_process("one", tmp_path / "log"):
            await says.announce_as({"session": "bad", "encoding": "mp3"})
            await says.announce("call-1")
            await says.play("call-1", say([1], PCM16), pause_s=0.02, end=False)
            admin = await acl.connect("admin")
            while not [each async for each in refused(admin, Keys("stt"))]:
                await anyio.sleep(0.05)
            assert "call-1" in await turnbus("sessions")
            assert "bad" in await turnbus("dead")
            assert "call-1" in await turnbus("end", "call-1")
            assert "empty" in await turnbus("drain", "one")
        assert not await acl.ask("ACL LOG"), "the user may do all that was tried"
