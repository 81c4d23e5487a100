"""Random commands on other types, and malformed ones."""

from typing import Any, Final

from schemas.keys import GROUP
from tests.simulation.redis.differential.draws import KEYS, LONG_S, Command, Draws, Weights
from worker.bus import scripts


def string(draws: Draws) -> Command:
    key = draws.one(KEYS.search, KEYS.sweep, KEYS.audio("0", "call-3"), draws.any_key())
    options = draws.one((), (), ("EX", LONG_S), ("PX", LONG_S * 1000), ("KEEPTTL",))
    condition = draws.one((), (), ("NX",), ("XX",))
    reads = draws.one((), (), (), ("GET",))
    return draws.one(
        ("SET", key, "value", *options, *condition, *reads),
        ("SET", key, "value", *options, *condition),
        ("GET", key),
    )


def hash_fields(draws: Draws) -> Command:
    key = draws.one(KEYS.workers, KEYS.state("0", draws.session()), draws.any_key())
    name = draws.one("status", "seq", "entry", "one")
    return draws.one(
        ("HSET", key, name, draws.one("1", "live", draws.any_id()), *draws.maybe("seq", "3")),
        ("HGET", key, name),
        ("HMGET", key, "status", name, "none"),
        ("HGETALL", key),
        ("HDEL", key, name, *draws.maybe("seq")),
        ("HEXISTS", key, name),
        ("HLEN", key),
        ("HVALS", key),
    )


def set_members(draws: Draws) -> Command:
    key = draws.one(KEYS.lanes, KEYS.lanes, draws.any_key())
    return draws.one(
        ("SADD", key, *draws.some(("0", "1", "west"))),
        ("SREM", key, *draws.some(("0", "1", "west"))),
        ("SMEMBERS", key),
        ("SISMEMBER", key, "0"),
    )


def sorted_set(draws: Draws) -> Command:
    key = draws.one(KEYS.gate, KEYS.gate, KEYS.lost, draws.any_key())
    member = draws.one("0:call-1", "0:call-2", "0:call-3")
    ranks = (draws.one(0, -1, -2, 1), draws.one(-1, 0, 1, 999))
    return draws.one(
        ("ZADD", key, *draws.maybe("NX"), draws.one("1", "2", "2.5", "1e15", "inf"), member),
        ("ZREM", key, member, *draws.maybe("none")),
        ("ZRANK", key, member),
        ("ZRANGE", key, *ranks, *draws.maybe("WITHSCORES")),
        ("ZCARD", key),
        ("ZSCORE", key, member),
    )


def generic(draws: Draws) -> Command:
    key = draws.any_key()
    removes = draws.rng.random() < (0.1 if key == KEYS.sessions else 0.4)
    return draws.one(
        ("TYPE", key),
        ("EXISTS", key, *draws.maybe(key, draws.any_key())),
        ("UNLINK", key, *draws.maybe(key)) if removes else ("XLEN", key),
        ("DEL", key) if removes else ("XLEN", draws.stream()),
        ("EXPIRE", key, draws.one(LONG_S, LONG_S, 0, -1)),
        ("PEXPIRE", key, LONG_S * 1000),
        ("PERSIST", key),
        ("TTL", key),
        ("PTTL", key),
        ("DBSIZE",),
        ("TIME",),
    )


def scan(draws: Draws) -> Command:
    kind = draws.one((), ("TYPE", draws.one("stream", "hash", "zset")))
    pattern = draws.one(KEYS.state("*", "*"), KEYS.audio("*", "*"), "stt:*", "stt:[gl]a??s")
    return ("SCAN", 0, "MATCH", pattern, "COUNT", 1_000, *kind)


def script_cache(draws: Draws) -> Command:
    known: list[scripts.Script[Any, Any]] = [scripts.commit, scripts.claim, scripts.write]
    script = draws.rng.choice(known)
    return draws.one(
        ("SCRIPT", "LOAD", script.text),
        ("SCRIPT", "EXISTS", script.sha, "f" * 40),
        ("EVALSHA", "f" * 40, 0),
        ("EVAL", "return {1, 2.7, 'a', {ok='fine'}, {1, {2}}, false, true, nil, 3}", 0),
        ("EVAL", "return redis.pcall('XLEN', KEYS[1])", 1, draws.any_key()),
        ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, KEYS.workers),
        ("EVAL", "return {err='MINE of the script'}", 0),
        ("EVAL", "return redis.sha1hex(ARGV[1])", 0, "text"),
        ("EVAL", "return ARGV[1] .. #KEYS .. #ARGV", 1, "key", "text"),
        ("EVAL", "return", -1),
        ("EVAL", "return", 2, "key"),
    )


def malformed(draws: Draws) -> Command:
    stream = draws.stream()
    return draws.one(
        ("XADD", stream, "*", "odd"),
        ("XADD", stream, "*"),
        ("XADD", stream, "no-id", "a", "b"),
        ("XADD", stream, "MAXLEN", "many", "*", "a", "b"),
        ("XADD", stream, "MAXLEN", 1, "LIMIT", 1, "*", "a", "b"),
        ("XREAD", "COUNT", "few", "STREAMS", stream, "0"),
        ("XREAD", "BLOCK", -1, "STREAMS", stream, "0"),
        ("XREAD", "STREAMS", stream, "nothing"),
        ("XRANGE", stream, "-", "x"),
        ("XCLAIM", KEYS.sessions, GROUP, "one", 0, draws.any_id(), "WHAT"),
        ("XCLAIM", KEYS.sessions, GROUP, "one", "soon", draws.any_id()),
        ("XPENDING", KEYS.sessions, GROUP, "-", "+"),
        ("XGROUP", "CREATE", stream, GROUP, "x"),
        ("XGROUP", "WHAT", stream),
        ("XINFO", "STREAM"),
        ("XTRIM", stream, "WHAT", 1),
        ("SET", KEYS.search, "value", "EX", 0),
        ("SET", KEYS.search, "value", "EX", "soon"),
        ("SET", KEYS.search, "value", "WHAT"),
        ("GET",),
        ("NOSUCH", "a", "b"),
        ("HSET", KEYS.workers, "a"),
        ("ZADD", KEYS.gate, "high", "member"),
        ("EXPIRE", KEYS.workers, "later"),
        ("SCAN", "x"),
        ("ZRANGE", KEYS.gate, 0, "x"),
    )


WEIGHTS: Final[Weights] = {
    string: 3,
    hash_fields: 5,
    set_members: 2,
    sorted_set: 4,
    generic: 4,
    scan: 1,
    script_cache: 1,
    malformed: 2,
}
