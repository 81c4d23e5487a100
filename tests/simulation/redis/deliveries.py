"""Commands on the pending lists of groups: delivery, acknowledgement, and claims."""

from collections.abc import Callable, Sequence
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
from tests.simulation.redis.entries import rows
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.nodes import MAX_ID, StreamId, format_id
from tests.simulation.redis.reads import StreamReads
from tests.simulation.redis.resp import CommandError, NilArray, Reply, text_of
from tests.simulation.redis.streams import Consumer, Group, Pending, Stream


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
        suffix = " in XREADGROUP with GROUP option"
        groups = [_group_of(db, key, group_name, suffix) for key, _ in pending_after]
        found: list[Reply] = []
        for (key, after), (stream, group) in zip(pending_after, groups, strict=True):
            consumer = _consumer_for(db, key, group, consumer_name)
            if after is not None:
                found.append([key, _history(db, key, stream, consumer(), after, reads.count)])
            elif stream.last_id > group.last_id:
                new = [*islice(stream.between(group.last_id + 1, MAX_ID), reads.count)]
                if new:
                    _deliver(db, group, consumer(), [entry_id for entry_id, _ in new])
                    db.changed(key)
                    found.append([key, rows(new)])
        return found or None

    def resume(db: Keyspace) -> Reply:
        try:
            return attempt(db)
        except CommandError as error:
            has_streams = all(isinstance(db.lookup(key), Stream) for key, _ in pending_after)
            gone = db.dialect.group_gone if has_streams else db.dialect.stream_gone
            raise CommandError(gone or error.text) from error

    reply = attempt(db)
    if reply is not None:
        return reply
    if reads.block_ms is None or not waits:
        return NilArray()
    return Wait([key for key, _ in pending_after], reads.block_ms, resume)


def _consumer_for(db: Keyspace, key: bytes, group: Group, name: bytes) -> Callable[[], Consumer]:
    """Return a function that returns a consumer, which is created when it is first needed."""

    def consumer() -> Consumer:
        if name not in group.consumers:
            db.changed(key)
        return group.consumer(name, db.now_ms)

    if db.dialect.creates_idle_consumers:
        consumer()
    return consumer


def _history_start(text: bytes) -> StreamId:
    if text == b"$":
        raise CommandError(
            "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the "
            "history of this consumer by specifying a proper ID, or use the > ID to get new "
            "messages. The $ ID would just return an empty result set."
        )
    return stream_id(text)


def _deliver(db: Keyspace, group: Group, consumer: Consumer, entry_ids: Sequence[StreamId]) -> None:
    for entry_id in entry_ids:
        group.assign(entry_id, consumer, db.now_ms, 1)
        group.last_id = entry_id
    consumer.active_ms = db.now_ms


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
    _, group = _group_of(db, args[1], args[2])
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


def _group_of(db: Keyspace, key: bytes, name: bytes, suffix: str = "") -> tuple[Stream, Group]:
    """Return a stream and its group. Raises NOGROUP if one is missing."""
    stream = db.stream(key)
    group = stream.groups.get(name) if stream is not None else None
    if stream is None or group is None:
        raise CommandError(
            f"NOGROUP No such key '{text_of(key)}' or consumer group '{text_of(name)}'{suffix}"
        )
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
                    f"ERR Unrecognized XCLAIM option '{text_of(args[options.at - 1])}'"
                )

    def _set_time(self, db: Keyspace, delivered_ms: int) -> None:
        self.delivered_ms = delivered_ms if 0 <= delivered_ms <= db.now_ms else db.now_ms


@command("XCLAIM", -6, writes=True)
def xclaim(db: Keyspace, args: Args) -> Reply:
    """Give pending entries to a consumer; drop those that left the stream."""
    key = args[1]
    stream, group = _group_of(db, key, args[2])
    min_idle_ms = max(0, integer(args[4], "ERR Invalid min-idle-time argument for XCLAIM"))
    claim = _Claim(db, args)
    if claim.last_id > group.last_id:
        group.last_id = claim.last_id
        db.changed(key)
    consumer = _consumer_for(db, key, group, args[3])
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
            count = 1
        elif min_idle_ms and db.now_ms - pending.delivered_ms < min_idle_ms:
            continue
        else:
            count = pending.count
        if claim.count is not None:
            count = claim.count
        elif not claim.only_ids:
            count += 1
        claimant = consumer()
        group.assign(entry_id, claimant, claim.delivered_ms, count)
        claimant.active_ms = db.now_ms
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
    stream, group = _group_of(db, key, args[2])
    consumer = _consumer_for(db, key, group, args[3])
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
            claimant = consumer()
            group.assign(entry_id, claimant, db.now_ms, deliveries)
            claimant.active_ms = db.now_ms
            claimed.append(format_id(entry_id) if only_ids else [format_id(entry_id), fields])
        count -= 1
        db.changed(key)
    after = candidates[at] if at < len(candidates) else 0
    return [format_id(after), claimed, deleted]
