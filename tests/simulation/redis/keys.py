"""Commands on keys and strings."""

import re
from collections.abc import Callable
from functools import cache

from tests.simulation.redis.arguments import SYNTAX_ERROR, Options, integer
from tests.simulation.redis.commands import Args, command
from tests.simulation.redis.keyspace import TYPE_NAMES, Keyspace
from tests.simulation.redis.resp import OK, CommandError, Reply, Status, text_of

_RELATIVE = {b"EX": 1000, b"PX": 1}
_ABSOLUTE = {b"EXAT": 1000, b"PXAT": 1}


@command("GET", 2)
def get(db: Keyspace, args: Args) -> Reply:
    """Return a string."""
    return db.find(args[1], bytes)


@command("SET", -3, writes=True, denied_if_full=True)
def set_(db: Keyspace, args: Args) -> Reply:
    """Store a string."""
    key, value = args[1], args[2]
    condition, returns_old, keeps_expiry, when_ms = b"", False, False, None
    options = Options(args, 3)
    for name in options:
        if name in {b"NX", b"XX"} and not condition:
            condition = name
        elif name == b"GET":
            returns_old = True
        elif name == b"KEEPTTL" and when_ms is None:
            keeps_expiry = True
        elif (name in _RELATIVE or name in _ABSOLUTE) and when_ms is None and not keeps_expiry:
            when_ms = _when_ms(db, name, options.integer())
        else:
            raise CommandError(SYNTAX_ERROR)
    old = db.find(key, bytes) if returns_old else None
    if condition and (db.lookup(key) is None) != (condition == b"NX"):
        return old
    db.put(key, value)
    if not keeps_expiry:
        db.expire_at(key, when_ms)
    db.changed(key)
    return old if returns_old else OK


def _when_ms(db: Keyspace, name: bytes, amount: int) -> int:
    when_ms = amount * (_RELATIVE.get(name) or _ABSOLUTE[name])
    if when_ms <= 0 or when_ms >= 1 << 63:
        raise CommandError("ERR invalid expire time in 'set' command")
    return when_ms + db.now_ms if name in _RELATIVE else when_ms


@command("DEL", -2, writes=True, step=1)
@command("UNLINK", -2, writes=True, step=1)
def unlink(db: Keyspace, args: Args) -> Reply:
    """Remove keys."""
    return sum(db.lookup(key) is not None and db.remove(key) for key in args[1:])


@command("EXISTS", -2, step=1)
def exists(db: Keyspace, args: Args) -> Reply:
    """Return how many of the keys exist."""
    return sum(db.lookup(key) is not None for key in args[1:])


@command("TYPE", 2)
def type_(db: Keyspace, args: Args) -> Reply:
    """Return the type of a key."""
    return Status(_type_name(db, args[1]))


def _type_name(db: Keyspace, key: bytes) -> bytes:
    value = db.lookup(key)
    return b"none" if value is None else TYPE_NAMES[type(value)]


@command("EXPIRE", -3, writes=True)
def expire(db: Keyspace, args: Args) -> Reply:
    """Expire a key after seconds."""
    return _expire(db, args, 1000)


@command("PEXPIRE", -3, writes=True)
def pexpire(db: Keyspace, args: Args) -> Reply:
    """Expire a key after milliseconds."""
    return _expire(db, args, 1)


def _expire(db: Keyspace, args: Args, unit_ms: int) -> Reply:
    when_ms = db.now_ms + integer(args[2]) * unit_ms
    if len(args) > 3:
        raise CommandError(f"ERR Unsupported option {text_of(args[3])}")
    if db.lookup(args[1]) is None:
        return 0
    db.expire_at(args[1], when_ms)
    db.changed(args[1])
    return 1


@command("PERSIST", 2, writes=True)
def persist(db: Keyspace, args: Args) -> Reply:
    """Remove the expiry of a key."""
    if db.lookup(args[1]) is None or db.expiry_ms(args[1]) is None:
        return 0
    db.expire_at(args[1], None)
    db.changed(args[1])
    return 1


@command("TTL", 2)
def ttl(db: Keyspace, args: Args) -> Reply:
    """Return the seconds until a key expires."""
    left_ms = _left_ms(db, args[1])
    return left_ms if left_ms < 0 else (left_ms + 500) // 1000


@command("PTTL", 2)
def pttl(db: Keyspace, args: Args) -> Reply:
    """Return the milliseconds until a key expires."""
    return _left_ms(db, args[1])


def _left_ms(db: Keyspace, key: bytes) -> int:
    if db.lookup(key) is None:
        return -2
    when_ms = db.expiry_ms(key)
    return -1 if when_ms is None else when_ms - db.now_ms


@command("DBSIZE", 1, first_key=0)
def dbsize(db: Keyspace, args: Args) -> Reply:
    """Return the number of keys."""
    return sum(1 for _ in db.existing())


@command("FLUSHALL", -1, writes=True, first_key=0)
@command("FLUSHDB", -1, writes=True, first_key=0)
def flush(db: Keyspace, args: Args) -> Reply:
    """Remove every key."""
    db.clear()
    return OK


@command("TIME", 1, first_key=0)
def time(db: Keyspace, args: Args) -> Reply:
    """Return the time."""
    return [b"%d" % part for part in divmod(db.now_us, 1_000_000)]


@command("SCAN", -2, first_key=0)
def scan(db: Keyspace, args: Args) -> Reply:
    """Return the next keys of an iteration."""
    if not args[1].isdigit():
        raise CommandError("ERR invalid cursor")
    count, pattern, kind = 10, b"*", b""
    options = Options(args, 2)
    for name in options:
        if name == b"COUNT":
            count = options.integer()
        elif name == b"MATCH":
            pattern = options.value()
        elif name == b"TYPE":
            kind = options.value().lower()
        else:
            raise CommandError(SYNTAX_ERROR)
    if count < 1:
        raise CommandError(SYNTAX_ERROR)
    cursor, found = db.scan(int(args[1]), count)
    matches = glob(pattern)
    return [
        b"%d" % cursor,
        [key for key in found if matches(key) and kind in {b"", _type_name(db, key)}],
    ]


@cache
def glob(pattern: bytes) -> Callable[[bytes], object]:
    r"""Return a function that tests a key for a pattern of `*`, `?`, `[...]` and `\`."""
    parts = re.findall(rb"\\.|\[[^\]]*\]|.", pattern, re.DOTALL)
    translated = {b"*": b".*", b"?": b"."}

    def expression(part: bytes) -> bytes:
        if part in translated:
            return translated[part]
        if len(part) > 1 and part[:1] == b"[":
            return part
        return re.escape(part[-1:])

    return re.compile(b"".join(map(expression, parts)), re.DOTALL).fullmatch
