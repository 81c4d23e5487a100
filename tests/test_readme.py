"""The README says what is true: its snippets run, its tables list what there is."""

import re
import shutil
import sqlite3
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args, get_origin

import anyio
import msgspec
import pytest

from schemas.audio import AudioEntry, SessionEntry, TurnConfig
from schemas.faults import REASONS, allowed
from schemas.turns import EndReason, GapReason, TurnEnd, TurnEndReason, TurnEvent
from tests.stage import PCM16, Stage, words
from tests.users import PASSWORD, GuardedRedis, as_user
from tests.waiting import PATIENCE_S
from worker.cli import _COMMANDS
from worker.local.engines.base import TurnSettings
from worker.local.engines.script import ScriptEngine, ScriptOptions, hush, say
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _snippet(name: str) -> str:
    found = re.search(rf"<!-- tested: {re.escape(name)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"no snippet {name} in the README"
    return found[1]


def _rows(title: str, *, column: int) -> list[str]:
    """Return a column of a section's table, without its head."""
    lines = [line for line in _section(title).splitlines() if line.startswith("| ")]
    return [line.split("|")[column + 1].strip() for line in lines[1:]]


def _section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title} in the README"
    return found[1]


_REDIS_CLI = """\
#!{python} -SE
# Stands in where there is no redis-cli: sends one command as it does, `-x` included. A client
# library would take longer to import than a chunk lasts.
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


@pytest.fixture
def shell_path(tmp_path: Path) -> Path:
    """Return a directory for commands a snippet may call."""
    path = tmp_path / "bin"
    path.mkdir()
    return path


CHUNK_MS = 100
"""Of the producers. Each chunk of speech is a whole word here: one that comes late tears none."""


async def test_producers_and_a_consumer_that_is_killed(tmp_path: Path, shell_path: Path) -> None:
    first, last = (say(words, PCM16, word_ms=CHUNK_MS) for words in ([1, 2, 3], [4]))
    (tmp_path / "call.raw").write_bytes(first + hush(7 * CHUNK_MS, PCM16) + last)
    engine = ScriptEngine(ScriptOptions(word_ms=CHUNK_MS, latency_ms=150))
    async with (
        TurnsServer.serve(ServerSettings(port=0), engine) as stt,
        GuardedRedis.start() as server,
        Stage.open(server.url, "stt", stt.url) as stage,
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
            code = _snippet(name).replace("redis.Redis()", f"redis.Redis.from_url({user!r})")
            return [sys.executable, "-c", code]

        async def consume(store: Path, count: int) -> list[tuple[str, int, str]]:
            """Run the consumer until it has stored so many turns, and kill it."""
            async with await anyio.open_process(python("consumer.py"), cwd=tmp_path) as consumer:
                while len(stored := _stored(store)) < count:
                    assert consumer.returncode is None
                    await anyio.sleep(0.02)
                consumer.kill()
            return stored

        with anyio.fail_after(2 * PATIENCE_S):
            async with stage.worker(), anyio.create_task_group() as tasks:
                tasks.start_soon(run, "bash", "-euc", _snippet("producer.sh"))
                tasks.start_soon(run, *python("producer.py"))
                await consume(tmp_path / "calls.db", 1)
                events = await stage.until_ended("call-1", "call-2")
            ends = [e for each in events.values() for e in each if isinstance(e, TurnEnd)]
            stored = await consume(tmp_path / "calls.db", len(ends))
    assert words(events["call-1"]) == words(events["call-2"]) == [1, 2, 3, 4]
    assert sorted(stored) == sorted((end.session, end.turn, end.transcript) for end in ends)


def _stored(store: Path) -> list[tuple[str, int, str]]:
    with closing(sqlite3.connect(store)) as calls:
        try:
            return calls.execute("SELECT * FROM said").fetchall()
        except sqlite3.OperationalError:  # not made yet, or just being written
            return []


def test_settings_are_those_there_are() -> None:
    listed = set(re.findall(r"`TURNBUS_(\w+)`", _section("Settings")))
    listed |= {f"STT_{name}" for name in re.findall(r"`\.\.\._(TURN_\w+)`", _section("Settings"))}
    assert listed == {name.upper() for name in Settings.__struct_fields__}


def test_defaults_are_those_there_are() -> None:
    rows = re.findall(r"^\| `TURNBUS_(\w+)` \| `([^`]+)` \|", _section("Settings"), re.MULTILINE)
    defaults = msgspec.structs.asdict(Settings())
    assert len(rows) > 10
    for name, default in rows:
        value = defaults[name.lower()]
        if isinstance(value, bool):
            value = str(value).lower()
        assert default == (f"{value:g}" if isinstance(value, float) else str(value)), name


def _range(kind: object) -> str:
    """Word what a type lets be as the tables do; empty if it is neither a number nor a choice."""
    if number := re.match(r"a (?:whole )?number from (\S+ to \S+)", allowed(kind)):
        return re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", number[1])
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if kind is bool:
        choices = ("true", "false")
    return " ".join(f"`{choice}`" for choice in choices)


def test_ranges_of_settings_are_those_there_are() -> None:
    row = r"^\| `TURNBUS_(\w+)` \|[^|]*\| ([^|]*?) ?\|"
    listed = dict(re.findall(row, _section("Settings"), re.MULTILINE))
    ranges = {field.name: _range(field.type) for field in msgspec.structs.fields(Settings)}
    ranges = {name: said for name, said in ranges.items() if said}
    assert len(ranges) > 10
    assert {name: listed[name.upper()] for name in ranges} == ranges


def test_turn_detection_is_what_it_is() -> None:
    row = r"^\| `(turn_\w+)` \| (.+?) \| (.+?) \|"
    defaults = msgspec.structs.astuple(TurnSettings())
    assert re.findall(row, _section("The bus"), re.MULTILINE) == [
        (field.name, _range(field.type), f"{default:,g}")
        for field, default in zip(msgspec.structs.fields(TurnConfig), defaults, strict=True)
    ]


_ERROR = r"(?:narrator\.error|reports\.provider_error|_fail)\(\s*(?:[\w.]+ or )?\"(\w+)\""


def test_errors_are_those_there_are() -> None:
    listed = set(re.findall(r"`(\w+)`", "".join(_rows("Errors", column=0))))
    made = {f"session_{reason}" for reason in REASONS if reason != "empty"} | {
        "session_unusable",
        "session_internal",
    }
    made |= {f"audio_{reason}" for reason in ("malformed", "too_large", "empty")}
    made |= {"audio_miscounted", "audio_repeated", "audio_untimed"}
    for module in [*(ROOT / "worker").glob("*.py"), *(ROOT / "worker" / "sessions").glob("*.py")]:
        source = module.read_text("utf-8")
        made |= set(re.findall(_ERROR, source))
    assert listed == made


def test_reasons_are_those_there_are() -> None:
    kinds = {"turn.end": TurnEndReason, "audio.gap": GapReason, "session.ended": EndReason}
    assert [*zip(_rows("Reasons", column=0), _rows("Reasons", column=1), strict=True)] == [
        (f"`{reason}`", f"`{kind}`")
        for kind, reasons in kinds.items()
        for reason in get_args(reasons)
    ]


def test_extras_are_those_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = re.findall(r"^\| `(\w+)` \|", _section("Use it"), re.MULTILINE)
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_commands_are_those_there_are() -> None:
    listed = set(re.findall(r"^\| `turnbus ([\w-]+)", _section("Use it"), re.MULTILINE))
    assert listed == set(_COMMANDS)


def test_events_are_those_there_are() -> None:
    listed = dict(
        re.findall(r"^\| `((?:session|turn|audio)\.\w+)` \| ([^|]+) \|", README, re.MULTILINE)
    )
    common = {"type", "session", "run", "seq", "at", "audio_ms", "provider", "request_id"}
    for event in msgspec.inspect.type_info(TurnEvent).types:  # type: ignore[attr-defined]
        named = set(re.findall(r"`(\w+)`", listed.pop(str(event.tag))))
        assert named == {field.name for field in event.fields} - common - {"connection"}
    assert not listed


def test_entry_fields_are_those_there_are() -> None:
    bus = _section("The bus")
    session, audio = bus.split("**Audio entry**")
    named = set(re.findall(r"`([a-z_]+)`", session.split("**Session entry**")[1]))
    wanted = set(SessionEntry.__struct_fields__) - {"config"} | set(TurnConfig.__struct_fields__)
    assert wanted <= named
    (rate,) = (
        each.type for each in msgspec.structs.fields(SessionEntry) if each.name == "sample_rate"
    )
    assert f"| `sample_rate` | Hz, {_range(rate)} |" in session
    named = set(re.findall(r"`([a-z_]+)`", audio.split("**Turn entry**")[0]))
    assert set(AudioEntry.__struct_fields__) <= named


def test_links_lead_somewhere() -> None:
    heads = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
