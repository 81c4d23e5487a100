"""`turnbus dead`: how dead letters are listed, and which can be requeued."""

import json
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from schemas import Keys
from tests.support.harness import PCM16, Harness, words
from tests.support.polling import eventually
from worker.bus.dead_letters import ListedDeadLetter, list_dead_letters, requeue
from worker.cli.main import main
from worker.errors import TurnbusError
from worker.local.emulator.engines.script import synthesize_words

GOOD = {"session": "s", "encoding": "pcm_s16le", "sample_rate": "16000", "metadata": '{"a":"ü"}'}


async def _refused(as_worker: AsyncRedis, keys: Keys) -> list[ListedDeadLetter]:
    return [each async for each in list_dead_letters(as_worker, keys)]


def add_dead_letter(bus: Redis, keys: Keys, **changed: str) -> str:
    fields: Any = {
        "id": "1-0",
        "stream": keys.sessions,
        "session": "s",
        "reason": "unusable",
        "detail": "a key of this session holds something\x1b[2J",
        "size": "1234",
        "entry": json.dumps(GOOD | {"run": "1-0"}),
        **changed,
    }
    entry: Any = bus.xadd(keys.dead, fields)
    return str(entry.decode())


def test_empty_dead_letter_stream_is_reported(
    keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead", "--json"]) == 0
    assert main(["dead"]) == 0
    assert capsys.readouterr().out == "ID  AGE  SESSION  REASON  SIZE  DETAIL\n"


def test_dead_letters_are_listed(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    expected_leftovers: list[str],
) -> None:
    expected_leftovers += ["dead"]
    first, second = (
        add_dead_letter(bus, keys),
        add_dead_letter(bus, keys, session="", reason="malformed", entry=""),
    )
    bus.xadd(keys.dead, {b"\xff": "of another program"})
    assert main(["dead"]) == 0
    _, one, two = capsys.readouterr().out.splitlines()
    assert one.split()[:1] + one.split()[2:5] == [first, "s", "unusable", "1.2k"]
    assert one.endswith("a key of this session holds something\ufffd[2J")
    assert two.split()[:1] + two.split()[2:4] == [second, "-", "malformed"]
    assert main(["dead", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["dead"] for row in rows] == [first, second]
    assert rows[0]["size"] == 1234
    assert json.loads(rows[0]["entry"])["metadata"] == '{"a":"ü"}'


def test_requeue_announces_session_again(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    expected_leftovers: list[str],
) -> None:
    expected_leftovers += ["sessions", "dead"]
    dead = add_dead_letter(bus, keys)
    assert main(["dead", "--requeue", dead, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows: Any = bus.xrange(keys.sessions)
    ((entry, fields),) = rows
    assert result == {"dead": dead, "entry": entry.decode()}
    assert fields == {name.encode(): value.encode() for name, value in GOOD.items()}
    assert bus.xlen(keys.dead) == 0
    assert main(["dead", "--requeue", dead]) == 1
    assert capsys.readouterr().err == f"turnbus: {keys.dead} has no entry {dead}\n"


@pytest.mark.parametrize(
    ("kept", "live", "why"),
    [
        ("", False, "cannot be announced again: its content was not stored"),
        (
            json.dumps(GOOD | {"encoding": "mp3"}),
            False,
            "it would be rejected again: field `encoding`",
        ),
        (json.dumps(GOOD), False, "s has ended; its id cannot be used again until its state exp"),
        (json.dumps(GOOD), True, "s is announced already, as "),
        ("[", False, "cannot be announced again: its content is invalid"),
    ],
)
def test_requeue_refuses_entry_that_is_still_invalid(
    bus: Redis,
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
    expected_leftovers: list[str],
    kept: str,
    live: bool,
    why: str,
) -> None:
    expected_leftovers += ["dead", "sessions", "{0}:state:s"]
    if live:
        bus.xadd(keys.sessions, {"session": "s"})
    bus.hset(keys.state("0", "s"), "status", "ended")
    assert main(["dead", "--requeue", add_dead_letter(bus, keys, entry=kept)]) == 1
    assert why in capsys.readouterr().err
    assert bus.xlen(keys.dead) == 1


@pytest.mark.parametrize("bad", ["x", "1", "1-", "-"])
def test_requeue_refuses_invalid_id(bad: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dead", f"--requeue={bad}"])
    assert end.value.code == 2


async def test_requeued_session_is_transcribed(harness: Harness, as_worker: AsyncRedis) -> None:
    keys = Keys(harness.prefix)
    await harness.redis.set(keys.state("0", "s"), "of another program")
    async with harness.worker():
        await harness.announce("s")
        found = await eventually(lambda: _refused(as_worker, keys), "the refused entry")
        assert (found[0].session, found[0].reason) == ("s", "unusable")
        await harness.redis.delete(keys.state("0", "s"))
        await requeue(as_worker, keys, found[0].dead)
        await harness.play("s", synthesize_words([1, 2], PCM16), pause_s=0.02)
        events = (await harness.until_ended("s"))["s"]
    assert words(events) == [1, 2]


@pytest.mark.parametrize("fields", [{"metadata": "x" * 20_000}, {"metadata": b"\xff"}])
async def test_dead_letter_omits_large_or_binary_entry(
    harness: Harness, as_worker: AsyncRedis, fields: dict[str, Any]
) -> None:
    keys = Keys(harness.prefix)
    async with harness.worker():
        await harness.announce("s", **fields)
        found = await eventually(lambda: _refused(as_worker, keys), "the refused entry")
    assert found[0].entry == ""
    with pytest.raises(TurnbusError, match="cannot be announced again"):
        await requeue(as_worker, keys, found[0].dead)
