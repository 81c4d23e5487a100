"""Replays what a model ran on a real server, and compares each reply.

Times, ids and idle times are compared exactly. A read that waits is sent without BLOCK, and again
when the model reads again after a write.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.simulation.redis.commands import Args
from tests.simulation.redis.resp import CommandError, NilArray, Reply, Status
from tests.simulation.redis.server import script_name
from tests.simulation.replay.frozen_server import FrozenServer
from tests.simulation.replay.recording import Restarted, Step

_SCRIPT_LINE = re.compile(r"script: (?:\w+, )?on @user_script:\d+")
_UNKNOWN_FIELDS = frozenset({b"radix-tree-nodes", b"entries-read", b"lag"})
"""Fields of XINFO that the model does not know."""

_NEWER_FIELDS = frozenset({b"inactive"})
"""Fields of XINFO that only newer servers have."""


class Difference(NamedTuple):
    """The first reply of the real server that is not that of the model."""

    step: int
    commands: Sequence[Args]
    real: Any
    model: Any

    def __str__(self) -> str:
        shown = "; ".join(map(_shown, self.commands))
        return f"step {self.step}: {shown}\nreal:  {self.real}\nmodel: {self.model}"


def replay(steps: Sequence[Step], server: FrozenServer) -> Difference | None:
    """Run the steps on an empty server; return the first difference."""
    full = False
    log_sizes: dict[int, int] = {}  # of the real log, by the length of the model's
    for nth, step in enumerate(steps):
        server.set_time(step.now_us)
        log_sizes[step.writes] = server.log_size
        if isinstance(step, Restarted):
            server.restart(log_sizes[step.writes - step.lost_writes])
            full = False
            continue
        if step.full != full:
            full = step.full
            server.run(b"CONFIG", b"SET", b"maxmemory", b"1" if full else b"0")
        for args in step.commands:
            real = server.run(*_without_block(args))
        expected, found = _plain(args, real), _plain(args, step.reply)
        if expected != found:
            return Difference(nth, step.commands, expected, found)
    return None


def _without_block(args: Args) -> Args:
    if not _may_wait(args):
        return args
    at = args.index(b"BLOCK")
    return args[:at] + args[at + 2 :]


def _may_wait(args: Args) -> bool:
    return args[0] in {b"XREAD", b"XREADGROUP"} and b"BLOCK" in args


def _plain(args: Args, reply: Any) -> Any:
    """Return a reply as plain values, and sort what has no order."""
    match args[0], reply:
        case b"INFO", _:
            return "about the server"
        case _, CommandError() if _may_wait(args):
            return "an error"  # Redis 7.0 has other errors for a read that waits
        case b"HGETALL", [*flat]:
            return sorted(zip(flat[::2], flat[1::2], strict=True))
        case b"SMEMBERS", [*members]:
            return sorted(members)
        case b"SCAN", _ if args[-2:] == [b"COUNT", b"1"]:
            return "some of the keys"
        case b"SCAN", [cursor, [*keys]]:
            return cursor, sorted(keys)
        case b"XINFO", [*rows]:
            return _fields(rows) if args[1] == b"STREAM" else [_fields(row) for row in rows]
        case b"EVALSHA", [taken, missing, [*unclaimed]] if script_name(args) == "heartbeat":
            return taken, missing, sorted(zip(unclaimed[::2], unclaimed[1::2], strict=True))
    return _value(reply)


def _fields(flat: Any) -> Any:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    hidden = _UNKNOWN_FIELDS | _NEWER_FIELDS
    return [(name, _value(value)) for name, value in pairs if name not in hidden]


def _value(reply: Reply) -> Any:
    match reply:
        case [*each]:
            return [_value(one) for one in each]
        case CommandError():
            return "error", _SCRIPT_LINE.sub("script line", reply.text)
        case Status():
            return "status", reply.text
        case NilArray():
            return "null array"
    return reply


def _shown(args: Args) -> str:
    name = script_name(args)
    parts = [name.encode(), *args[2:]] if name else args
    return " ".join(part[:60].decode("utf-8", "replace") for part in parts)
