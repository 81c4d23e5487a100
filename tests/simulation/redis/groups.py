"""Commands on the consumer groups of streams, without their pending lists."""

from tests.simulation.redis.arguments import (
    SYNTAX_ERROR,
    Options,
    stream_id,
)
from tests.simulation.redis.commands import Args, command
from tests.simulation.redis.entries import NO_SUCH_KEY, flat
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.nodes import StreamId, format_id
from tests.simulation.redis.resp import OK, CommandError, Reply, text_of
from tests.simulation.redis.streams import Group, Stream

_NEEDS_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use "
    "the MKSTREAM option to create an empty stream automatically."
)


@command("XGROUP|CREATE", -5, writes=True, denied_if_full=True, first_key=2)
def xgroup_create(db: Keyspace, args: Args) -> Reply:
    """Create a group."""
    key, name = args[2], args[3]
    makes_stream = False
    for option in Options(args, 5):
        if option != b"MKSTREAM":
            raise CommandError(SYNTAX_ERROR)
        makes_stream = True
    stream = db.stream(key)
    if stream is None and not makes_stream:
        raise CommandError(_NEEDS_KEY)
    last = _group_start(stream, args[4])
    if stream is None:
        stream = Stream()
        db.put(key, stream)
    if name in stream.groups:
        raise CommandError("BUSYGROUP Consumer Group name already exists")
    stream.groups[name] = Group(last)
    db.changed(key)
    return OK


def _group_start(stream: Stream | None, text: bytes) -> StreamId:
    if text == b"$":
        return 0 if stream is None else stream.last_id
    return stream_id(text)


@command("XGROUP|DESTROY", 4, writes=True, first_key=2)
def xgroup_destroy(db: Keyspace, args: Args) -> Reply:
    """Remove a group."""
    stream = _existing(db, args[2])
    if stream.groups.pop(args[3], None) is None:
        return 0
    db.changed(args[2])
    return 1


@command("XGROUP|SETID", 5, writes=True, first_key=2)
def xgroup_setid(db: Keyspace, args: Args) -> Reply:
    """Set the last delivered id of a group."""
    stream = _existing(db, args[2])
    group = _named(stream, args[2], args[3])
    group.last_id = _group_start(stream, args[4])
    db.changed(args[2])
    return OK


@command("XGROUP|CREATECONSUMER", 5, writes=True, denied_if_full=True, first_key=2)
def xgroup_createconsumer(db: Keyspace, args: Args) -> Reply:
    """Create a consumer."""
    group = _named(_existing(db, args[2]), args[2], args[3])
    if args[4] in group.consumers:
        return 0
    group.consumer(args[4], db.now_ms).is_logged = True
    db.changed(args[2])
    return 1


@command("XGROUP|DELCONSUMER", 5, writes=True, first_key=2)
def xgroup_delconsumer(db: Keyspace, args: Args) -> Reply:
    """Remove a consumer with its pending entries."""
    group = _named(_existing(db, args[2]), args[2], args[3])
    if args[4] in group.consumers:
        db.changed(args[2])
    return group.remove_consumer(args[4])


def _existing(db: Keyspace, key: bytes) -> Stream:
    stream = db.stream(key)
    if stream is None:
        raise CommandError(_NEEDS_KEY)
    return stream


def _named(stream: Stream, key: bytes, name: bytes) -> Group:
    group = stream.groups.get(name)
    if group is None:
        raise CommandError(
            f"NOGROUP No such consumer group '{text_of(name)}' for key name '{text_of(key)}'"
        )
    return group


@command("XINFO|GROUPS", 3, first_key=2)
def xinfo_groups(db: Keyspace, args: Args) -> Reply:
    """Describe the groups of a stream. `entries-read` and `lag` are unknown here."""
    stream = db.stream(args[2])
    if stream is None:
        raise CommandError(NO_SUCH_KEY)
    return [
        [
            *flat(
                {
                    b"name": name,
                    b"consumers": len(group.consumers),
                    b"pending": len(group.pending),
                    b"last-delivered-id": format_id(group.last_id),
                    b"entries-read": None,
                    b"lag": None,
                }
            )
        ]
        for name, group in sorted(stream.groups.items())
    ]


@command("XINFO|CONSUMERS", 4, first_key=2)
def xinfo_consumers(db: Keyspace, args: Args) -> Reply:
    """Describe the consumers of a group."""
    stream = db.stream(args[2])
    if stream is None:
        raise CommandError(NO_SUCH_KEY)
    group = _named(stream, args[2], args[3])
    return [
        [
            *flat(
                {
                    b"name": name,
                    b"pending": len(each.pending),
                    b"idle": max(0, db.now_ms - each.seen_ms),
                    b"inactive": (
                        -1 if each.active_ms is None else max(0, db.now_ms - each.active_ms)
                    ),
                }
            )
        ]
        for name, each in sorted(group.consumers.items())
    ]
