"""Commands on the consumer groups of streams."""

from itertools import islice

from tests.simulation.redis.arguments import (
    SYNTAX_ERROR,
    Options,
    integer,
    range_end,
    range_start,
    stream_id,
)
from tests.simulation.redis.commands import Args, Wait, command
from tests.simulation.redis.entries import NO_SUCH_KEY, StreamReads, flat, rows
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.resp import OK, CommandError, NilArray, Reply
from tests.simulation.redis.streams import (
    MAX_ID,
    Consumer,
    Group,
    Pending,
    Stream,
    StreamId,
    format_id,
)

_NEEDS_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use "
    "the MKSTREAM option to create an empty stream automatically."
)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


# -- groups


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
    group.consumer(args[4], db.now_ms)
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
            f"NOGROUP No such consumer group '{_text(name)}' for key name '{_text(key)}'"
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


# -- deliveries


@command("XREADGROUP", -7, writes=True, first_key=0)
def xreadgroup(db: Keyspace, args: Args) -> Reply | Wait:
    """Deliver new entries to a consumer, wait for one, or return its pending ones."""
    if args[1].upper() != b"GROUP":
        raise CommandError(
            "ERR Missing GROUP option for XREADGROUP"
            if b"GROUP" not in map(bytes.upper, args)
            else SYNTAX_ERROR
        )
    group_name, consumer_name = args[2], args[3]
    reads = StreamReads(args, 4)
    pending_after = [
        (key, None if text == b">" else _history_start(text)) for key, text in reads.streams
    ]
    waits = all(after is None for _, after in pending_after)

    def attempt(db: Keyspace) -> Reply:
        groups = [_read_group(db, key, group_name) for key, _ in pending_after]
        found: list[Reply] = []
        for (key, after), (stream, group) in zip(pending_after, groups, strict=True):
            if consumer_name not in group.consumers:
                db.changed(key)
            consumer = group.consumer(consumer_name, db.now_ms)
            if after is not None:
                found.append([key, _history(db, key, stream, consumer, after, reads.count)])
            elif stream.last_id > group.last_id:
                entries = _deliver(db, stream, group, consumer, reads.count)
                if entries:
                    db.changed(key)
                    found.append([key, entries])
        return found or None

    reply = attempt(db)
    if reply is not None:
        return reply
    if reads.block_ms is None or not waits:
        return NilArray()
    return Wait([key for key, _ in pending_after], reads.block_ms, attempt)


def _history_start(text: bytes) -> StreamId:
    if text == b"$":
        raise CommandError(
            "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the "
            "history of this consumer by specifying a proper ID, or use the > ID to get new "
            "messages. The $ ID would just return an empty result set."
        )
    return stream_id(text)


def _read_group(db: Keyspace, key: bytes, name: bytes) -> tuple[Stream, Group]:
    stream = db.stream(key)
    group = stream.groups.get(name) if stream is not None else None
    if stream is None or group is None:
        raise CommandError(
            f"NOGROUP No such key '{_text(key)}' or consumer group '{_text(name)}' in XREADGROUP "
            "with GROUP option"
        )
    return stream, group


def _deliver(
    db: Keyspace, stream: Stream, group: Group, consumer: Consumer, count: int | None
) -> list[Reply]:
    delivered = [*islice(stream.between(group.last_id + 1, MAX_ID), count)]
    for entry_id, _ in delivered:
        group.assign(entry_id, consumer, db.now_ms, 1)
        group.last_id = entry_id
    if delivered:
        consumer.active_ms = db.now_ms
    return rows(delivered)


def _history(
    db: Keyspace,
    key: bytes,
    stream: Stream,
    consumer: Consumer,
    after: StreamId,
    count: int | None,
) -> list[Reply]:
    found: list[Reply] = []
    for entry_id in islice((each for each in sorted(consumer.pending) if each > after), count):
        fields = stream.get(entry_id)
        if fields is None:
            found.append([format_id(entry_id), NilArray()])
            continue
        pending = consumer.pending[entry_id]
        pending.delivered_ms = db.now_ms
        pending.count += 1
        db.changed(key)
        found.append([format_id(entry_id), fields])
    return found


@command("XACK", -4, writes=True)
def xack(db: Keyspace, args: Args) -> Reply:
    """Acknowledge entries."""
    stream = db.stream(args[1])
    group = stream.groups.get(args[2]) if stream else None
    if group is None:
        return 0
    acknowledged = sum([group.drop(each) for each in [stream_id(text) for text in args[3:]]])
    if acknowledged:
        db.changed(args[1])
    return acknowledged


@command("XPENDING", -3)
def xpending(db: Keyspace, args: Args) -> Reply:
    """Return a summary of the pending list, or rows of it."""
    options = Options(args, 3)
    min_idle_ms, first, last, count = 0, 0, MAX_ID, 0
    if len(args) > 3:
        if args[3].upper() == b"IDLE":
            options.at += 1
            min_idle_ms = options.integer()
        if len(args) not in {options.at + 3, options.at + 4}:
            raise CommandError(SYNTAX_ERROR)
        count = integer(args[options.at + 2])
        first = range_start(args[options.at])
        last = range_end(args[options.at + 1])
    _, group = _claimable(db, args[1], args[2])
    if len(args) == 3:
        return _summary(group)
    among: dict[StreamId, Pending] = group.pending
    if len(args) == options.at + 4:
        consumer = group.consumers.get(args[-1])
        among = consumer.pending if consumer is not None else {}
    found: list[Reply] = []
    for entry_id in sorted(among):
        if len(found) >= count or entry_id > last:
            break
        pending = among[entry_id]
        idle_ms = max(0, db.now_ms - pending.delivered_ms)
        if entry_id >= first and idle_ms >= min_idle_ms:
            found.append([format_id(entry_id), pending.consumer.name, idle_ms, pending.count])
    return found


def _summary(group: Group) -> Reply:
    if not group.pending:
        return [0, None, None, NilArray()]
    return [
        len(group.pending),
        format_id(min(group.pending)),
        format_id(max(group.pending)),
        [
            [name, b"%d" % len(each.pending)]
            for name, each in sorted(group.consumers.items())
            if each.pending
        ],
    ]


def _claimable(db: Keyspace, key: bytes, name: bytes) -> tuple[Stream, Group]:
    stream = db.stream(key)
    group = stream.groups.get(name) if stream is not None else None
    if stream is None or group is None:
        raise CommandError(f"NOGROUP No such key '{_text(key)}' or consumer group '{_text(name)}'")
    return stream, group


class _Claim:
    """The options of an XCLAIM."""

    def __init__(self, db: Keyspace, args: Args) -> None:
        self.entry_ids: list[StreamId] = []
        self.delivered_ms = db.now_ms
        self.count: int | None = None
        self.force = self.only_ids = False
        self.last_id: StreamId = 0
        options = Options(args, 5)
        while options.at < len(args):
            try:
                self.entry_ids.append(stream_id(args[options.at]))
            except CommandError:
                break
            options.at += 1
        for name in options:
            if name == b"FORCE":
                self.force = True
            elif name == b"JUSTID":
                self.only_ids = True
            elif name == b"IDLE":
                idle_ms = options.integer("ERR Invalid IDLE option argument for XCLAIM")
                self._set_time(db, db.now_ms - idle_ms)
            elif name == b"TIME":
                self._set_time(db, options.integer("ERR Invalid TIME option argument for XCLAIM"))
            elif name == b"RETRYCOUNT":
                self.count = options.integer("ERR Invalid RETRYCOUNT option argument for XCLAIM")
                if self.count < 0:
                    raise CommandError("ERR Invalid RETRYCOUNT option argument for XCLAIM")
            elif name == b"LASTID":
                self.last_id = stream_id(options.value())
            else:
                raise CommandError(
                    f"ERR Unrecognized XCLAIM option '{_text(args[options.at - 1])}'"
                )

    def _set_time(self, db: Keyspace, delivered_ms: int) -> None:
        self.delivered_ms = delivered_ms if 0 <= delivered_ms <= db.now_ms else db.now_ms


@command("XCLAIM", -6, writes=True)
def xclaim(db: Keyspace, args: Args) -> Reply:
    """Give pending entries to a consumer; drop those that left the stream."""
    key = args[1]
    stream, group = _claimable(db, key, args[2])
    min_idle_ms = max(0, integer(args[4], "ERR Invalid min-idle-time argument for XCLAIM"))
    claim = _Claim(db, args)
    group.last_id = max(group.last_id, claim.last_id)
    if args[3] not in group.consumers:
        db.changed(key)
    consumer = group.consumer(args[3], db.now_ms)
    claimed: list[Reply] = []
    for entry_id in claim.entry_ids:
        pending = group.pending.get(entry_id)
        fields = stream.get(entry_id)
        if fields is None:
            if group.drop(entry_id):
                db.changed(key)
            continue
        if pending is None:
            if not claim.force:
                continue
            count = 0
        elif min_idle_ms and db.now_ms - pending.delivered_ms < min_idle_ms:
            continue
        else:
            count = pending.count
        if claim.count is not None:
            count = claim.count
        elif not claim.only_ids:
            count += 1
        group.assign(entry_id, consumer, claim.delivered_ms, count)
        consumer.active_ms = db.now_ms
        db.changed(key)
        claimed.append(format_id(entry_id) if claim.only_ids else [format_id(entry_id), fields])
    return claimed


@command("XAUTOCLAIM", -6, writes=True)
def xautoclaim(db: Keyspace, args: Args) -> Reply:
    """Give the next idle entries to a consumer; drop those that left the stream."""
    key = args[1]
    min_idle_ms = max(0, integer(args[4], "ERR Invalid min-idle-time argument for XAUTOCLAIM"))
    start = range_start(args[5])
    count, only_ids = 100, False
    options = Options(args, 6)
    for name in options:
        if name == b"COUNT":
            count = options.integer()
            if not 0 < count < 1 << 31:
                raise CommandError("ERR COUNT must be > 0")
        elif name == b"JUSTID":
            only_ids = True
        else:
            raise CommandError(SYNTAX_ERROR)
    stream, group = _claimable(db, key, args[2])
    if args[3] not in group.consumers:
        db.changed(key)
    consumer = group.consumer(args[3], db.now_ms)
    candidates = [each for each in sorted(group.pending) if each >= start]
    attempts, at = count * 10, 0
    claimed: list[Reply] = []
    deleted: list[Reply] = []
    while at < len(candidates) and attempts and count:
        entry_id = candidates[at]
        at, attempts = at + 1, attempts - 1
        fields = stream.get(entry_id)
        pending = group.pending[entry_id]
        if fields is None:
            group.drop(entry_id)
            deleted.append(format_id(entry_id))
        elif min_idle_ms and db.now_ms - pending.delivered_ms < min_idle_ms:
            continue
        else:
            deliveries = pending.count if only_ids else pending.count + 1
            group.assign(entry_id, consumer, db.now_ms, deliveries)
            consumer.active_ms = db.now_ms
            claimed.append(format_id(entry_id) if only_ids else [format_id(entry_id), fields])
        count -= 1
        db.changed(key)
    after = candidates[at] if at < len(candidates) else 0
    return [format_id(after), claimed, deleted]
