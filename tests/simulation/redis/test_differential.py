"""The model is held to real servers: same histories of commands, same replies."""

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.redis.dialect import Dialect
from tests.simulation.redis.differential.comparison import RealServer, compare, run_on
from tests.simulation.redis.differential.draws import KEYS
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import CommandError, Reply
from worker.bus import scripts
from worker.local.redis import EmbeddedRedis

COMMANDS = 300
"""Number of commands of a history: then most keys have data, and some were removed."""

ATTEMPTS = 3
"""Maximum number of comparisons of one history."""

EXPECTED = {
    *(("claim", verdict) for verdict in ("new", "taken", "ended", "over", "duplicate", "stale")),
    ("claim", "unusable"),
    *(("commit", verdict) for verdict in ("ok", "fenced", "missing", "gap")),
    *(("exchange_breaker", state) for state in ("closed", "open", "probing")),
    *(("take_over", "array"), ("heartbeat", "array"), ("request_permits", "array")),
    *(("restore_entry", str(restored)) for restored in (0, 1)),
    *(("raise_delivery_count", str(raised)) for raised in (0, 1)),
    *(("release", str(released)) for released in (0, 1)),
    *(("reject", str(rejected)) for rejected in (0, 1)),
    *(("remove_audio", str(removed)) for removed in (0, 1)),
    *(("release_permit", str(freed)) for freed in (0, 1)),
    *(("delete_consumer", str(gone)) for gone in (0, 1)),
    *(("complete", "None"), ("delete_record", "1"), ("write", "1")),
    *(("XCLAIM", "array"), ("XAUTOCLAIM", "array"), ("XPENDING", "array"), ("XREADGROUP", "array")),
    *(("XACK", "1"), ("XDEL", "1"), ("XTRIM", "1"), ("XREADGROUP", "NOGROUP"), ("XREAD", "array")),
}
"""Replies that the histories of a run must reach: a weaker generator compares too little."""


@pytest.fixture
def real(real_server: EmbeddedRedis) -> Iterator[RealServer]:
    connection = RealServer(real_server.port)
    yield connection
    connection.close()


def new_model(dialect: Dialect) -> RedisModel:
    return RedisModel(time.time, random.Random(1), dialect)


def compare_histories(seeds: range, real: RealServer, dialect: Dialect) -> Counter[tuple[str, str]]:
    """Compare a history of each seed, and print how much was compared.

    Redis 7.0 reads its clock for each command of a script. Now and then the entries of one script
    get ids of two milliseconds, which are equal in the model. Only repeated differences count.
    """
    answers: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        for _ in range(ATTEMPTS):
            difference = compare(seed, COMMANDS, real, new_model(dialect), answers)
            if difference is None:
                break
        else:
            pytest.fail(str(difference))
    print(f"{len(seeds)} histories, {answers.total()} commands: equal replies")
    return answers


def test_model_replies_as_real_servers_do(real: RealServer, dialect: Dialect) -> None:
    compare_histories(range(12), real, dialect)


@pytest.mark.slow
def test_model_replies_as_real_servers_do_for_long(real: RealServer, dialect: Dialect) -> None:
    answers = compare_histories(range(12, 412), real, dialect)
    missing = EXPECTED - answers.keys()
    assert not missing, f"the histories never reach {sorted(missing)}"


# -- servers that reject commands

PROBES: list[tuple[str | int, ...]] = [
    ("XADD", "stream", "*", "n", "1"),
    ("SET", "string", "value"),
    ("HSET", "hash", "n", "1"),
    ("SADD", "set", "n"),
    ("ZADD", "zset", "1", "n"),
    ("UNLINK", "none"),
    ("EXPIRE", "none", "100"),
    ("XACK", "none", "group", "1-1"),
    ("XTRIM", "none", "MAXLEN", "1"),
    ("XDEL", "none", "1-1"),
    ("HDEL", "none", "n"),
    ("ZREM", "none", "n"),
    ("XGROUP", "CREATE", "other", "group", "0", "MKSTREAM"),
    ("XREADGROUP", "GROUP", "group", "me", "STREAMS", "none", ">"),
    ("XCLAIM", "none", "group", "me", "0", "1-1"),
    ("XLEN", "none"),
    ("GET", "none"),
    ("HGETALL", "none"),
    ("XREAD", "STREAMS", "none", "0"),
    ("SCRIPT", "LOAD", "return 1"),
    ("EVAL", "#!lua\nreturn redis.call('XLEN', KEYS[1])", 1, "none"),
    ("EVAL", "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], 'n', 1)", 1, "allowed"),
    ("EVAL", "#!lua flags=no-writes\nreturn redis.call('XLEN', KEYS[1])", 1, "none"),
    ("EVAL", "return redis.call('SADD', KEYS[1], 'n')", 1, "plain"),
    ("EVAL", "return redis.call('XLEN', KEYS[1])", 1, "none"),
    ("EVALSHA", *scripts.write.call(key=KEYS.lanes, command="SADD", values=["0"])),
]


@pytest.mark.parametrize(
    ("fault", "begin", "end"),
    [
        ("full", ("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
        (
            "lacks_replicas",
            ("CONFIG", "SET", "min-replicas-to-write", 1),
            ("CONFIG", "SET", "min-replicas-to-write", 0),
        ),
        ("read_only", ("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
    ],
)
def test_faults_reject_the_same_commands(
    real: RealServer,
    dialect: Dialect,
    fault: str,
    begin: tuple[str | int, ...],
    end: tuple[str | int, ...],
) -> None:
    model = new_model(dialect)
    for run in (real.run, run_on(model)):
        run(encoded("FLUSHALL"))
        run(encoded("SCRIPT", "LOAD", scripts.write.text))
    real.run(encoded(*begin))
    setattr(model.faults, fault, True)
    try:
        for probe in PROBES:
            expected, found = (shown(run(encoded(*probe))) for run in (real.run, run_on(model)))
            assert found == expected, probe
    finally:
        real.run(encoded(*end))


def encoded(*parts: str | int) -> list[bytes]:
    return [str(part).encode() for part in parts]


def shown(reply: Reply) -> str:
    """Return an error's text up to where the script failed; of another reply, that there is one."""
    return reply.text.partition(" script: ")[0] if isinstance(reply, CommandError) else "a reply"
