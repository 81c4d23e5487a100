"""XREAD, and what it has in common with XREADGROUP."""

from collections.abc import Callable
from itertools import islice

from tests.simulation.redis.arguments import SYNTAX_ERROR, Options, stream_id
from tests.simulation.redis.commands import Args, Wait, command
from tests.simulation.redis.entries import rows
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.nodes import MAX_ID, StreamId
from tests.simulation.redis.resp import CommandError, NilArray, Reply


class StreamReads:
    """The options and streams of XREAD and XREADGROUP."""

    def __init__(self, args: Args, at: int) -> None:
        self.count: int | None = None
        self.block_ms: int | None = None
        self.streams: list[tuple[bytes, bytes]] = []
        options = Options(args, at)
        for name in options:
            if name == b"COUNT":
                self.count = options.integer() or None
            elif name == b"BLOCK":
                self.block_ms = options.integer("ERR timeout is not an integer or out of range")
                if self.block_ms < 0:
                    raise CommandError("ERR timeout is negative")
            elif name == b"STREAMS":
                named = args[options.at :]
                if not named or len(named) % 2:
                    raise CommandError(_unbalanced(args[0].decode().lower()))
                half = len(named) // 2
                self.streams = [*zip(named[:half], named[half:], strict=True)]
                break
            else:
                raise CommandError(SYNTAX_ERROR)
        if not self.streams:
            raise CommandError(SYNTAX_ERROR)
        if self.count is not None and self.count < 0:
            self.count = None


def _unbalanced(name: str) -> str:
    return (
        f"ERR Unbalanced '{name}' list of streams: "
        "for each stream key an ID, '+', or '$' must be specified."
    )


@command("XREAD", -4, first_key=0)
def xread(db: Keyspace, args: Args) -> Reply | Wait:
    """Return the entries after an id in each stream, or wait for one."""
    reads = StreamReads(args, 1)
    cursors = [(key, _cursor(db, key, text)) for key, text in reads.streams]
    count = reads.count

    def attempt(db: Keyspace) -> Reply:
        found: list[Reply] = []
        for key, after in cursors:
            stream = db.stream(key)
            if stream is not None and stream.last_id > after:
                entries = rows(islice(stream.between(after + 1, MAX_ID), count))
                if entries:
                    found.append([key, entries])
        return found or None

    reply = attempt(db)
    if reply is not None:
        return reply
    if reads.block_ms is None:
        return NilArray()
    return Wait([key for key, _ in cursors], reads.block_ms, _unless_wrong_type(attempt))


def _unless_wrong_type(attempt: Callable[[Keyspace], Reply]) -> Callable[[Keyspace], Reply]:
    """Keep a client waiting while a key holds another type, as Redis does."""

    def wait_on(db: Keyspace) -> Reply:
        try:
            return attempt(db)
        except CommandError:
            return None

    return wait_on


def _cursor(db: Keyspace, key: bytes, text: bytes) -> StreamId:
    stream = db.stream(key)
    if text == b"$":
        return 0 if stream is None else stream.last_id
    if text == b">":
        raise CommandError(
            "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> "
            "<consumer> option."
        )
    return stream_id(text)
