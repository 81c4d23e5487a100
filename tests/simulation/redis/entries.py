"""Commands on the entries of streams."""

from collections.abc import Iterable, Iterator
from itertools import islice

from tests.simulation.redis.arguments import (
    SYNTAX_ERROR,
    Options,
    integer,
    range_end,
    range_start,
    stream_id,
)
from tests.simulation.redis.commands import Args, command, wrong_arity
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.nodes import (
    MAX_ID,
    NODE_ENTRIES,
    SEQUENCE_BITS,
    SEQUENCE_MASK,
    Fields,
    StreamId,
    format_id,
    make_id,
)
from tests.simulation.redis.resp import CommandError, NilArray, Reply
from tests.simulation.redis.streams import Stream

NO_SUCH_KEY = "ERR no such key"
_TOO_SMALL = "ERR The ID specified in XADD is equal or smaller than the target stream top item"


class Trim:
    """A trim as an XADD or XTRIM requests it."""

    def __init__(self, strategy: bytes, options: Options) -> None:
        text = options.value()
        self.approximate = text == b"~"
        if text in {b"~", b"="}:
            text = options.value()
        self.limit = 100 * NODE_ENTRIES if self.approximate else 0
        self.length: int | None = None
        self.before: StreamId = 0
        if strategy == b"MAXLEN":
            self.length = integer(text)
            if self.length < 0:
                raise CommandError("ERR The MAXLEN argument must be >= 0.")
        else:
            self.before = stream_id(text)

    def limit_to(self, limit: int) -> None:
        """Remove at most a number of entries."""
        if limit < 0:
            raise CommandError("ERR The LIMIT argument must be >= 0.")
        if not self.approximate:
            raise CommandError(
                "ERR syntax error, LIMIT cannot be used without the special ~ option"
            )
        self.limit = limit

    def apply(self, stream: Stream) -> int:
        """Trim a stream; return the number of removed entries."""
        if self.length is None:
            return stream.trim_before(self.before, approximate=self.approximate, limit=self.limit)
        return stream.trim_to_length(self.length, approximate=self.approximate, limit=self.limit)


@command("XADD", -5, writes=True, denied_if_full=True)
def xadd(db: Keyspace, args: Args) -> Reply:
    """Append an entry."""
    key = args[1]
    trim: Trim | None = None
    creates = True
    options = Options(args, 2)
    for name in options:
        if name == b"NOMKSTREAM":
            creates = False
        elif name in {b"MAXLEN", b"MINID"}:
            if trim is not None:
                raise CommandError(
                    "ERR syntax error, MAXLEN and MINID options at the same time are not compatible"
                )
            trim = Trim(name, options)
        elif name == b"LIMIT" and trim is not None:
            trim.limit_to(options.integer())
        else:
            options.at -= 1
            break
    at = options.at
    fields = args[at + 1 :]
    requested = None if args[at : at + 1] == [b"*"] else _RequestedId(options.value())
    if len(fields) < 2 or len(fields) % 2:
        raise CommandError(wrong_arity("xadd"))
    if requested is not None and requested.is_zero:
        raise CommandError("ERR The ID specified in XADD must be greater than 0-0")
    stream = db.stream(key)
    if stream is None and not creates:
        return None
    new = Stream() if stream is None else stream
    added = _next_id(db, new) if requested is None else requested.after(new.last_id)
    if stream is None:
        db.put(key, new)
    new.append(added, fields)
    if trim is not None:
        trim.apply(new)
    db.changed(key)
    return format_id(added)


class _RequestedId:
    """The id that a producer chose, perhaps without its sequence number: `5-*`."""

    def __init__(self, text: bytes) -> None:
        self._any_sequence = text.endswith(b"-*")
        self._id = stream_id(text.removesuffix(b"-*"))

    @property
    def is_zero(self) -> bool:
        return self._id == 0 and not self._any_sequence

    def after(self, last: StreamId) -> StreamId:
        """Return the id of the new entry. Raises `CommandError` if it is not after the last."""
        found = self._id
        if self._any_sequence and found >> SEQUENCE_BITS == last >> SEQUENCE_BITS:
            if last & SEQUENCE_MASK == SEQUENCE_MASK:
                raise CommandError(_TOO_SMALL)
            found = last + 1
        if found <= last:
            raise CommandError(_TOO_SMALL)
        return found


def _next_id(db: Keyspace, stream: Stream) -> StreamId:
    if stream.last_id == MAX_ID:
        raise CommandError("ERR The stream has exhausted the last possible ID, unable to add more")
    now = make_id(db.now_ms, 0)
    return now if now > stream.last_id else stream.last_id + 1


@command("XTRIM", -4, writes=True)
def xtrim(db: Keyspace, args: Args) -> Reply:
    """Remove the oldest entries."""
    trim: Trim | None = None
    options = Options(args, 2)
    for name in options:
        if name in {b"MAXLEN", b"MINID"} and trim is None:
            trim = Trim(name, options)
        elif name == b"LIMIT" and trim is not None:
            trim.limit_to(options.integer())
        else:
            raise CommandError(SYNTAX_ERROR)
    if trim is None:
        raise CommandError(SYNTAX_ERROR)
    stream = db.stream(args[1])
    removed = 0 if stream is None else trim.apply(stream)
    if removed:
        db.changed(args[1])
    return removed


@command("XDEL", -3, writes=True)
def xdel(db: Keyspace, args: Args) -> Reply:
    """Delete entries."""
    stream = db.stream(args[1])
    if stream is None:
        return 0
    removed = sum([stream.delete(each) for each in [stream_id(text) for text in args[2:]]])
    if removed:
        db.changed(args[1])
    return removed


@command("XLEN", 2)
def xlen(db: Keyspace, args: Args) -> Reply:
    """Return the number of entries."""
    stream = db.stream(args[1])
    return 0 if stream is None else stream.length


@command("XRANGE", -4)
def xrange(db: Keyspace, args: Args) -> Reply:
    """Return entries in their order."""
    return _range(db, args, range_start(args[2]), range_end(args[3]), backwards=False)


@command("XREVRANGE", -4)
def xrevrange(db: Keyspace, args: Args) -> Reply:
    """Return entries from the last one on."""
    return _range(db, args, range_start(args[3]), range_end(args[2]), backwards=True)


def _range(db: Keyspace, args: Args, first: StreamId, last: StreamId, *, backwards: bool) -> Reply:
    count: int | None = None
    options = Options(args, 4)
    for name in options:
        if name != b"COUNT":
            raise CommandError(SYNTAX_ERROR)
        count = max(0, options.integer())
    stream = db.stream(args[1])
    if stream is None:
        return []
    if count == 0:
        return NilArray()
    found = stream.between_reversed(first, last) if backwards else stream.between(first, last)
    return rows(islice(found, count))


def rows(entries: Iterable[tuple[StreamId, Fields]]) -> list[Reply]:
    """Return entries as a reply has them."""
    return [[format_id(entry_id), fields] for entry_id, fields in entries]


@command("XINFO|STREAM", -3, first_key=2)
def xinfo_stream(db: Keyspace, args: Args) -> Reply:
    """Describe a stream. The number of nodes of its radix tree is an estimate."""
    if len(args) > 3:
        raise CommandError(SYNTAX_ERROR)
    stream = db.stream(args[2])
    if stream is None:
        raise CommandError(NO_SUCH_KEY)
    first = next(stream.between(0, MAX_ID), None)
    last = next(stream.between_reversed(0, MAX_ID), None)
    about: dict[bytes, Reply] = {
        b"length": stream.length,
        b"radix-tree-keys": len(stream.nodes),
        b"radix-tree-nodes": len(stream.nodes) + 1,
        b"last-generated-id": format_id(stream.last_id),
        b"max-deleted-entry-id": format_id(stream.max_deleted_id),
        b"entries-added": stream.added,
        b"recorded-first-entry-id": format_id(first[0] if first else 0),
        b"groups": len(stream.groups),
        b"first-entry": rows([first])[0] if first else None,
        b"last-entry": rows([last])[0] if last else None,
    }
    return [*flat(about)]


def flat(about: dict[bytes, Reply]) -> Iterator[Reply]:
    """Yield names and values, as RESP2 sends a map."""
    for name, value in about.items():
        yield name
        yield value
