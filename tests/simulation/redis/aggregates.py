"""Commands on hashes, sets and sorted sets."""

import math
from bisect import bisect_left

from tests.simulation.redis.arguments import SYNTAX_ERROR, Options, integer
from tests.simulation.redis.commands import Args, command, wrong_arity
from tests.simulation.redis.keyspace import Keyspace, SortedSet
from tests.simulation.redis.resp import CommandError, Reply


@command("HSET", -4, writes=True, denied_if_full=True)
def hset(db: Keyspace, args: Args) -> Reply:
    """Set fields of a hash."""
    if len(args) % 2:
        raise CommandError(wrong_arity("hset"))
    key = args[1]
    fields = db.hash(key)
    if fields is None:
        fields = {}
        db.put(key, fields)
    before = len(fields)
    fields.update(zip(args[2::2], args[3::2], strict=True))
    db.changed(key)
    return len(fields) - before


@command("HGET", 3)
def hget(db: Keyspace, args: Args) -> Reply:
    """Return a field."""
    return (db.hash(args[1]) or {}).get(args[2])


@command("HMGET", -3)
def hmget(db: Keyspace, args: Args) -> Reply:
    """Return fields."""
    fields = db.hash(args[1]) or {}
    return [fields.get(name) for name in args[2:]]


@command("HGETALL", 2)
def hgetall(db: Keyspace, args: Args) -> Reply:
    """Return every field with its value."""
    return [part for pair in (db.hash(args[1]) or {}).items() for part in pair]


@command("HVALS", 2)
def hvals(db: Keyspace, args: Args) -> Reply:
    """Return every value."""
    return [*(db.hash(args[1]) or {}).values()]


@command("HLEN", 2)
def hlen(db: Keyspace, args: Args) -> Reply:
    """Return the number of fields."""
    return len(db.hash(args[1]) or {})


@command("HEXISTS", 3)
def hexists(db: Keyspace, args: Args) -> Reply:
    """Return whether a field exists."""
    return int(args[2] in (db.hash(args[1]) or {}))


@command("HDEL", -3, writes=True)
def hdel(db: Keyspace, args: Args) -> Reply:
    """Remove fields."""
    fields = db.hash(args[1])
    if fields is None:
        return 0
    removed = sum(fields.pop(name, None) is not None for name in args[2:])
    if removed:
        db.changed(args[1])
        db.remove_if_empty(args[1])
    return removed


@command("SADD", -3, writes=True, denied_if_full=True)
def sadd(db: Keyspace, args: Args) -> Reply:
    """Add members to a set."""
    members = _set(db, args[1])
    if members is None:
        members = set()
        db.put(args[1], members)
    before = len(members)
    members.update(args[2:])
    if len(members) > before:
        db.changed(args[1])
    return len(members) - before


@command("SREM", -3, writes=True)
def srem(db: Keyspace, args: Args) -> Reply:
    """Remove members from a set."""
    members = _set(db, args[1])
    if members is None:
        return 0
    before = len(members)
    members.difference_update(args[2:])
    removed = before - len(members)
    if removed:
        db.changed(args[1])
        db.remove_if_empty(args[1])
    return removed


@command("SMEMBERS", 2)
def smembers(db: Keyspace, args: Args) -> Reply:
    """Return the members of a set. Their order has no meaning."""
    return sorted(_set(db, args[1]) or ())


@command("SISMEMBER", 3)
def sismember(db: Keyspace, args: Args) -> Reply:
    """Return whether a set has a member."""
    return int(args[2] in (_set(db, args[1]) or ()))


def _set(db: Keyspace, key: bytes) -> set[bytes] | None:
    return db.find(key, set)


@command("ZADD", -4, writes=True, denied_if_full=True)
def zadd(db: Keyspace, args: Args) -> Reply:
    """Add members to a sorted set, or change their scores."""
    key, at, only_new = args[1], 2, False
    if args[2].upper() == b"NX":
        at, only_new = 3, True
    pairs = args[at:]
    if not pairs or len(pairs) % 2:
        raise CommandError(SYNTAX_ERROR)
    scores = [_score(text) for text in pairs[::2]]
    ordered = db.find(key, SortedSet)
    if ordered is None:
        ordered = SortedSet()
        db.put(key, ordered)
    added = 0
    for score, member in zip(scores, pairs[1::2], strict=True):
        known = ordered.scores.get(member)
        if known is None or (not only_new and known != score):
            ordered.add(member, score)
            db.changed(key)
        added += known is None
    return added


def _score(text: bytes) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise CommandError("ERR value is not a valid float")
    return score


@command("ZREM", -3, writes=True)
def zrem(db: Keyspace, args: Args) -> Reply:
    """Remove members."""
    ordered = db.find(args[1], SortedSet)
    if ordered is None:
        return 0
    removed = sum(ordered.remove(member) for member in args[2:])
    if removed:
        db.changed(args[1])
        db.remove_if_empty(args[1])
    return removed


@command("ZCARD", 2)
def zcard(db: Keyspace, args: Args) -> Reply:
    """Return the number of members."""
    ordered = db.find(args[1], SortedSet)
    return len(ordered.scores) if ordered else 0


@command("ZSCORE", 3)
def zscore(db: Keyspace, args: Args) -> Reply:
    """Return the score of a member."""
    ordered = db.find(args[1], SortedSet)
    score = ordered.scores.get(args[2]) if ordered else None
    return None if score is None else _format_score(score)


@command("ZRANK", 3)
def zrank(db: Keyspace, args: Args) -> Reply:
    """Return the rank of a member."""
    ordered = db.find(args[1], SortedSet)
    score = ordered.scores.get(args[2]) if ordered else None
    if ordered is None or score is None:
        return None
    return bisect_left(ordered.ordered, (score, args[2]))


@command("ZRANGE", -4)
def zrange(db: Keyspace, args: Args) -> Reply:
    """Return the members of a range of ranks."""
    first, last = integer(args[2]), integer(args[3])
    with_scores = False
    for option in Options(args, 4):
        if option != b"WITHSCORES":
            raise CommandError(SYNTAX_ERROR)
        with_scores = True
    ordered = db.find(args[1], SortedSet)
    if ordered is None:
        return []
    count = len(ordered.scores)
    first = max(0, first + count if first < 0 else first)
    last = last + count if last < 0 else last
    rows = ordered.ordered[first : max(0, last + 1)]
    if with_scores:
        return [part for score, member in rows for part in (member, _format_score(score))]
    return [member for _, member in rows]


def _format_score(score: float) -> bytes:
    return b"%d" % score if score.is_integer() and abs(score) < 2**53 else b"%.17g" % score
