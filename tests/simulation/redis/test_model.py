"""The model's own parts: expiry, its clock, its log, and the environment of scripts."""

import random
from itertools import chain, count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.redis.differential.comparison import Side, preparation, run_on
from tests.simulation.redis.differential.draws import KEYS
from tests.simulation.redis.differential.histories import History
from tests.simulation.redis.keyspace import Keyspace, SortedSet
from tests.simulation.redis.log import COPY_INTERVAL
from tests.simulation.redis.model import RedisModel, ScriptRun
from tests.simulation.redis.resp import CommandError, NilArray
from tests.simulation.redis.scripts import NAMES
from tests.simulation.redis.streams import Stream
from worker.bus import scripts

BEGAN_S = 1_800_000_000.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = BEGAN_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock: Clock) -> RedisModel:
    return RedisModel(clock, random.Random(1))


def test_key_expires_after_its_time(model: RedisModel, clock: Clock) -> None:
    model.execute("SET", "a", "x", "PX", 100)
    clock.now_s += 0.1
    assert model.execute("GET", "a") == b"x"
    clock.now_s += 0.001
    assert model.execute("GET", "a") is None
    assert model.execute("DBSIZE") == 0
    assert model.execute("SET", "a", "y", "NX") is not None


def test_expiry_stands_still_while_a_script_runs(clock: Clock) -> None:
    model = RedisModel(clock, random.Random(1))
    model.execute("SET", "a", "x", "PX", 1)
    ticks = count()
    model._clock = lambda: BEGAN_S + next(ticks)
    text = "local t = redis.call('TIME')[1]; return {t == redis.call('TIME')[1], t}"
    assert model.execute("EVAL", text, 0) == [1, b"1800000000"]


def test_ids_grow_while_the_clock_goes_back(model: RedisModel, clock: Clock) -> None:
    assert model.execute("XADD", "a", "*", "n", "1") == b"1800000000000-0"
    model.time_offset_s = -60.0
    assert model.execute("TIME") == [b"1799999940", b"0"]
    assert model.execute("XADD", "a", "*", "n", "1") == b"1800000000000-1"
    model.time_offset_s = 1.0
    assert model.execute("XADD", "a", "*", "n", "1") == b"1800000001000-0"


def test_approximate_trim_removes_whole_nodes(model: RedisModel) -> None:
    for number in range(250):
        model.execute("XADD", "a", f"{number + 1}-0", "n", "1")
    assert model.execute("XTRIM", "a", "MINID", "~", "150") == 100
    assert model.execute("XTRIM", "a", "MINID", "150") == 49
    assert model.execute("XTRIM", "a", "MAXLEN", "~", "60") == 0
    assert model.execute("XTRIM", "a", "MAXLEN", "~", "50") == 51


def test_scan_returns_every_key_that_stays(model: RedisModel) -> None:
    kept = {f"kept-{number}".encode() for number in range(100)}
    for key in kept:
        model.execute("SET", key, "x")
    found: set[bytes] = set()
    cursor: Any = b"0"
    for number in count():
        model.execute("SET", f"other-{number}", "x")
        reply: Any = model.execute("SCAN", cursor, "COUNT", 7)
        cursor = reply[0]
        found |= set(reply[1])
        model.execute("UNLINK", f"other-{number - 3}")
        if cursor == b"0":
            break
    assert kept <= found


def test_execute_raises_errors_and_ignores_faults(model: RedisModel) -> None:
    model.faults.read_only = True
    model.execute("SET", "a", "x")
    assert model.faults.read_only
    with pytest.raises(CommandError, match="WRONGTYPE"):
        model.execute("XLEN", "a")
    assert isinstance(model.execute("XREAD", "BLOCK", 0, "STREAMS", "b", "$"), NilArray)


# -- scripts


def test_every_script_of_the_worker_is_known_by_name() -> None:
    assert NAMES[scripts.commit.sha.encode()] == "commit"
    assert len(NAMES) == 16


def test_script_hook_gets_each_run_once(model: RedisModel) -> None:
    runs: list[ScriptRun] = []
    model.on_script = runs.append
    model.execute("SCRIPT", "LOAD", scripts.write.text)
    call = ("EVALSHA", *scripts.write.call(key="a", command="SADD", values=["0"]))
    model.execute(*call)
    model.restart()
    assert runs == [ScriptRun("write", [b"a"], [b"SADD", b"0"], 1)]
    with pytest.raises(CommandError, match="NOSCRIPT"):
        model.execute(*call)
    assert model.execute("SMEMBERS", "a") == [b"0"]


def test_command_of_the_script_hook_is_logged_behind(model: RedisModel) -> None:
    model.execute("SCRIPT", "LOAD", scripts.write.text)

    def flush_all(_: ScriptRun) -> None:
        model.execute("SCRIPT", "FLUSH")
        model.execute("SADD", "a", "1")
        model.execute("UNLINK", "a")

    model.on_script = flush_all
    model.execute("EVALSHA", *scripts.write.call(key="a", command="SADD", values=["0"]))
    model.on_script = None
    model.execute("SADD", "a", "2")
    model.restart(3)
    assert model.execute("SMEMBERS", "a") == [b"0"]


def test_script_must_declare_its_keys(model: RedisModel) -> None:
    with pytest.raises(RuntimeError, match="without declaring"):
        model.execute("EVAL", "return redis.call('GET', 'a')", 1, "b")
    assert model.execute("EVAL", "return redis.call('GET', KEYS[1])", 1, "a") is None


@pytest.mark.parametrize(
    "text",
    ["return os.time()", "return io.open('/')", "undefined_name = 1", "return undefined_name",
     "return debug.getinfo(1)", "return require('os')", "return python.eval('1')",
     "return redis.call()", "return redis.call('NOSUCH')", "return redis.call('GET')",
     "return redis.call('EVAL', 'return 1', 0)", "return redis.call('SET', KEYS[1], {})",
     "#!lua flags=no-writes\nreturn redis.call('SET', KEYS[1], 1)",
     "#!lua flags=what\nreturn 1", "#!python\nreturn 1", "#!lua what=1\nreturn 1", "return ("],
)  # fmt: skip
def test_script_cannot_do_what_redis_denies(model: RedisModel, text: str) -> None:
    with pytest.raises(CommandError, match=r"^ERR"):
        model.execute("EVAL", text, 1, "a")


def test_script_keeps_its_writes_when_it_fails(model: RedisModel) -> None:
    text = "redis.call('SET', KEYS[1], 'x'); redis.call('XLEN', KEYS[1])"
    with pytest.raises(CommandError, match=r"^WRONGTYPE .* script: on @user_script:1\.$"):
        model.execute("EVAL", text, 1, "a")
    assert model.execute("GET", "a") == b"x"
    model.restart()
    assert model.execute("GET", "a") == b"x"


def test_scripts_convert_values_as_redis_does(model: RedisModel) -> None:
    text = "return {redis.call('GET', KEYS[1]), 3.9, -3.9, true, false, {err = 'E x'}, 'end', nil}"
    first, *rest = model.execute("EVAL", text, 1, "a")  # type: ignore[misc]
    assert first is None
    assert rest[:4] == [3, -3, 1, None]
    assert isinstance(rest[4], CommandError)
    assert rest[5:] == [b"end"]
    assert model.execute("EVAL", "return type(redis.call('GET', KEYS[1]))", 1, "a") == b"boolean"
    assert model.execute("EVAL", "return redis.call('TYPE', KEYS[1]).ok", 1, "a") == b"none"
    assert model.execute("EVAL", "return tostring(cjson.decode('[null]')[1])", 0) != b"nil"


# -- the log


def contents(db: Keyspace) -> dict[bytes, Any]:
    """Return all that clients can see of the keys, and a log has."""
    return {key: (_plain(db.lookup(key)), db.expiry_ms(key)) for key in sorted(db.existing())}


def _plain(value: Any) -> Any:
    if isinstance(value, SortedSet):
        return value.ordered
    if not isinstance(value, Stream):
        return value
    groups = {
        name: (
            group.last_id,
            {entry: (each.consumer.name, each.delivered_ms, each.count)
             for entry, each in group.pending.items()},
            {each.name: sorted(each.pending)
             for each in group.consumers.values() if each.is_logged},
        )
        for name, group in value.groups.items()
    }  # fmt: skip
    nodes = [(node.ids, node.entries, node.live, node.size_bytes) for node in value.nodes]
    return (nodes, value.length, value.added, value.last_id, value.max_deleted_id, groups)


def ticking_model() -> RedisModel:
    ticks = count()
    return RedisModel(lambda: BEGAN_S + next(ticks) / 100, random.Random(1))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), lost=st.integers(0, 200))
def test_restart_brings_back_each_write_but_the_lost(seed: int, lost: int) -> None:
    model = ticking_model()
    side, history = Side(run_on(model)), History(seed)
    before = {0: contents(model.db)}
    for command in chain(preparation(), history.commands(200)):
        history.observe(command, side.answer(command), side.known_ids)
        before[model.log.length] = contents(model.db.copy())
    lost = min(lost, model.log.length)
    kept = model.log.length - lost
    now_ms = model.db.now_ms
    model.restart(lost)
    model.db.set_time(now_ms * 1000)
    assert contents(model.db) == before[kept]
    assert model.log.length == kept


def test_log_replaces_old_writes_by_copies(model: RedisModel, clock: Clock) -> None:
    for number in range(3 * COPY_INTERVAL + 10):
        clock.now_s += 1
        model.execute("XADD", "a", "MAXLEN", 5, f"{number + 1}-0", "n", "1")
    assert model.log.count_since(clock.now_s - 2) == 2
    with pytest.raises(ValueError, match="the log keeps"):
        model.restart(3 * COPY_INTERVAL)
    assert model.execute("XLEN", "a") == 5
    model.restart(COPY_INTERVAL + 5)
    newest: Any = model.execute("XREVRANGE", "a", "+", "-", "COUNT", 1)
    assert newest[0][0] == b"%d-0" % (2 * COPY_INTERVAL + 5)
    model.execute("XADD", "a", "*", "n", "1")
    model.restart()
    assert model.execute("XLEN", "a") == 6


def test_restart_forgets_consumers_without_an_entry(model: RedisModel, clock: Clock) -> None:
    model.execute("XGROUP", "CREATE", "a", "g", 0, "MKSTREAM")
    model.execute("XGROUP", "CREATECONSUMER", "a", "g", "made")
    model.execute("XREADGROUP", "GROUP", "g", "early", "STREAMS", "a", ">")
    model.execute("XADD", "a", "1-0", "n", "1")
    model.execute("XREADGROUP", "GROUP", "g", "owner", "STREAMS", "a", ">")
    clock.now_s += 60
    model.restart()
    clock.now_s += 2
    rows: Any = model.execute("XINFO", "CONSUMERS", "a", "g")
    about = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
    assert [(each[b"name"], each[b"idle"], each[b"inactive"]) for each in about] == [
        (b"made", 2000, -1),
        (b"owner", 2000, 2000),
    ]


def test_reads_are_not_in_the_log(model: RedisModel) -> None:
    model.execute("XGROUP", "CREATE", "a", "g", 0, "MKSTREAM")
    model.execute("XREADGROUP", "GROUP", "g", "me", "STREAMS", "a", ">")
    length = model.log.length
    for command in (("XLEN", "a"), ("XREAD", "STREAMS", "a", 0), ("EVAL", "return 1", 0)):
        model.execute(*command)
    model.execute("XREADGROUP", "GROUP", "g", "me", "STREAMS", "a", ">")
    assert model.log.length == length
    assert model.execute("EXISTS", KEYS.sessions) == 0
