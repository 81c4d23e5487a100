"""The documented producers and consumer run, and survive a kill."""

import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from schemas.turns import TurnEnd
from tests.docs.pages import PAGES
from tests.support.acl import PASSWORD, GuardedRedis, as_user
from tests.support.harness import PCM16, Harness, words
from tests.support.polling import PATIENCE_S
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

_SNIPPET = re.compile(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
_FOUND = [found for page in PAGES for found in _SNIPPET.findall(page.read_text("utf-8"))]
SNIPPETS: dict[str, str] = dict(_FOUND)

_REDIS_CLI = """\
#!{python} -SE
# Replaces redis-cli where it is not installed: sends one command as it does, `-x` included. A
# client library takes longer to import than a chunk lasts.
import socket, sys
arguments = [argument.encode() for argument in sys.argv[1:] if argument != "-e"]
if arguments[0] == b"-x":
    arguments = [*arguments[1:], sys.stdin.buffer.read()]
with socket.create_connection(("127.0.0.1", {port})) as redis:
    redis.sendall(b"AUTH producer {password}\\r\\n")
    assert redis.recv(1000) == b"+OK\\r\\n"
    redis.sendall(b"*%d\\r\\n" % len(arguments))
    redis.sendall(b"".join(b"$%d\\r\\n%b\\r\\n" % (len(each), each) for each in arguments))
    reply = redis.recv(1000).decode()
print(reply.strip())
sys.exit(reply.startswith("-"))
"""

CHUNK_MS = 100
"""Length of the producers' chunks.

Each chunk of speech is a whole word here, so a late chunk splits no word.
"""


@pytest.fixture
def shell_path(tmp_path: Path) -> Path:
    """Return a directory for the commands that a snippet may call."""
    path = tmp_path / "bin"
    path.mkdir()
    return path


def test_snippets_with_same_name_are_equal() -> None:
    assert set(SNIPPETS) == {"consumer.py", "gateway_client.py", "producer.py", "producer.sh"}
    for name, code in _FOUND:
        assert code == SNIPPETS[name], name


async def test_snippets_survive_kill_of_consumer(tmp_path: Path, shell_path: Path) -> None:
    first, last = (synthesize_words(words, PCM16, word_ms=CHUNK_MS) for words in ([1, 2, 3], [4]))
    (tmp_path / "call.raw").write_bytes(first + synthesize_silence(7 * CHUNK_MS, PCM16) + last)
    engine = ScriptEngine(ScriptOptions(word_ms=CHUNK_MS, latency_ms=150))
    async with (
        TurnsServer.serve(ServerSettings(port=0), engine) as stt,
        GuardedRedis.start() as server,
        Harness.open(server.url, "stt", stt.url) as harness,
    ):
        (shell_path / "redis-cli").write_text(
            _REDIS_CLI.format(python=sys.executable, port=server.port, password=PASSWORD)
        )
        (shell_path / "redis-cli").chmod(0o755)
        env = {"PATH": f"{shell_path}:{Path(shutil.which('bash') or '/bin/bash').parent}:/usr/bin"}

        async def run(*command: str) -> None:
            await anyio.run_process(command, cwd=tmp_path, env=env)

        def python(name: str) -> list[str]:
            user = as_user(server.url, Path(name).stem)
            code = SNIPPETS[name].replace("redis.Redis()", f"redis.Redis.from_url({user!r})")
            return [sys.executable, "-c", code]

        async def consume(store: Path, count: int) -> list[tuple[str, int, str]]:
            """Run the consumer until it has stored `count` turns, then kill it."""
            async with await anyio.open_process(python("consumer.py"), cwd=tmp_path) as consumer:
                while len(stored := _stored(store)) < count:
                    assert consumer.returncode is None
                    await anyio.sleep(0.02)
                consumer.kill()
            return stored

        with anyio.fail_after(2 * PATIENCE_S):
            async with harness.worker(), anyio.create_task_group() as tasks:
                tasks.start_soon(run, "bash", "-euc", SNIPPETS["producer.sh"])
                tasks.start_soon(run, *python("producer.py"))
                await consume(tmp_path / "calls.db", 1)
                events = await harness.until_ended("call-1", "call-2")
            ends = [e for each in events.values() for e in each if isinstance(e, TurnEnd)]
            stored = await consume(tmp_path / "calls.db", len(ends))
    assert words(events["call-1"]) == words(events["call-2"]) == [1, 2, 3, 4]
    assert sorted(stored) == sorted((end.session, end.turn, end.transcript) for end in ends)


def _stored(store: Path) -> list[tuple[str, int, str]]:
    with closing(sqlite3.connect(store)) as calls:
        try:
            return calls.execute("SELECT session, turn, transcript FROM turns").fetchall()
        except sqlite3.OperationalError:  # the table does not exist yet, or is locked
            return []
