"""Replies of two servers to one history, made comparable: ids by their number, times masked."""

import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from tests.simulation.redis.commands import Wait
from tests.simulation.redis.differential.draws import Command, Id
from tests.simulation.redis.differential.histories import History
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import CommandError, NilArray, Reply, Status
from worker.bus import scripts

_ENTRY_ID = re.compile(rb"\b\d+-\d+\b")
_NOW = re.compile(rb"\b1[6-9]\d{8}(?:\d{3}|\d{6})?\b")
"""Unix seconds, milliseconds or microseconds of these years."""

_SCRIPT_LINE = re.compile(r"script: (?:\w+, )?on @user_script:\d+")
"""Where a script failed: with its SHA-1 in Redis 7.0, and without a line in a tail call here."""

_APPENDING = frozenset({"claim", "commit", "reject", "restore_entry"})
"""Scripts that append entries."""

_UNKNOWN_FIELDS = frozenset({b"radix-tree-nodes", b"entries-read", b"lag", b"inactive", b"idle"})
_NAMES: dict[Any, str] = {
    each.sha: each.name for each in vars(scripts).values() if isinstance(each, scripts.Script)
}


class Side:
    """One of the servers, with the ids that it has replied with."""

    def __init__(self, run: Callable[[list[bytes]], Reply]) -> None:
        self._run = run
        self._ids: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    @property
    def known_ids(self) -> int:
        """Number of ids so far."""
        return len(self._ids)

    def answer(self, command: Command) -> Any:
        """Run a command; return its reply as plain values."""
        reply = self._run([self._resolve(part) for part in command])
        return self._plain(_masked(command, reply))

    def _resolve(self, part: Any) -> bytes:
        if isinstance(part, Id):
            return part.prefix.encode() + self._ids[part.number]
        return part if isinstance(part, bytes) else str(part).encode()

    def _plain(self, reply: Any) -> Any:
        if isinstance(reply, bytes):
            numbered = _ENTRY_ID.sub(self._number, reply)
            return _NOW.sub(b"<now>", numbered).decode("utf-8", "replace")
        if isinstance(reply, list):
            return [self._plain(each) for each in reply]
        if isinstance(reply, tuple):
            return tuple(self._plain(each) for each in reply)
        if isinstance(reply, CommandError):
            return ("error", _SCRIPT_LINE.sub("script line", reply.text))
        if isinstance(reply, Status):
            return ("status", reply.text.decode())
        return "nil array" if isinstance(reply, NilArray) else reply

    def _number(self, match: re.Match[bytes]) -> bytes:
        entry_id = match[0]
        if entry_id not in self._numbers:
            self._numbers[entry_id] = len(self._ids)
            self._ids.append(entry_id)
        return b"<id %d>" % self._numbers[entry_id]


def _masked(command: Command, reply: Any) -> Any:
    """Replace what depends on the moment, and sort what has no order."""
    if isinstance(reply, int) and command[0] in {"TTL", "PTTL"}:
        return reply if reply < 0 else reply > 0
    if not isinstance(reply, list):
        return reply
    match command[0], command[1] if len(command) > 1 else "":
        case "TIME", _:
            return len(reply)
        case "XPENDING", _ if len(command) > 3:
            return [[entry, owner, idle >= 0, count] for entry, owner, idle, count in reply]
        case "XINFO", "STREAM":
            return _fields(reply)
        case "XINFO", _:
            return [_fields(row) for row in reply]
        case ("SMEMBERS", _) | ("HGETALL", _):
            return sorted(reply)
        case "SCAN", _:
            return [reply[0], sorted(reply[1])]
        case "EVALSHA", digest if _NAMES.get(digest) == "heartbeat":
            taken, missing, unclaimed = reply
            return [taken, missing, sorted(zip(unclaimed[::2], unclaimed[1::2], strict=True))]
    return reply


def _fields(flat: list[Any]) -> list[Any]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return [(name, value) for name, value in pairs if name not in _UNKNOWN_FIELDS]


class RealServer:
    """A connection to a real server, on which one command at a time runs."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")

    def close(self) -> None:
        """Close the connection."""
        self._replies.close()
        self._socket.close()

    def run(self, args: list[bytes]) -> Reply:
        """Run a command."""
        parts = [b"*%d\r\n" % len(args), *(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)]
        self._socket.sendall(b"".join(parts))
        return self._read()

    def _read(self) -> Reply:
        line = self._replies.readline().removesuffix(b"\r\n")
        kind, text = line[:1], line[1:]
        match kind:
            case b"+":
                return Status(text)
            case b"-":
                return CommandError(text.decode())
            case b":":
                return int(text)
            case b"$":
                return None if text == b"-1" else self._replies.read(int(text) + 2)[:-2]
            case b"*":
                return NilArray() if text == b"-1" else [self._read() for _ in range(int(text))]
        raise ValueError(f"the server sent {line!r}")


def run_on(model: RedisModel) -> Callable[[list[bytes]], Reply]:
    """Return a function that runs commands on a model, on which no client waits."""

    def run(args: list[bytes]) -> Reply:
        reply = model.run(args)
        return NilArray() if isinstance(reply, Wait) else reply

    return run


class Difference(NamedTuple):
    """The first command of a history to which the replies differ."""

    seed: int
    commands: list[Command]
    real: Any
    model: Any

    def __str__(self) -> str:
        shown = "\n".join(map(_shown, self.commands[-12:]))
        return (
            f"seed {self.seed}, command {len(self.commands)}\n{shown}\n"
            f"real:  {self.real}\nmodel: {self.model}"
        )


def _shown(command: Command) -> str:
    name = _script(command)
    return " ".join(str(part)[:60] for part in ((name, *command[2:]) if name else command))


def _script(command: Command) -> str:
    return _NAMES.get(command[1], "") if command[0] == "EVALSHA" else ""


def compare(
    seed: int, count: int, real: RealServer, model: RedisModel, answers: Counter[tuple[str, str]]
) -> Difference | None:
    """Run a history on both servers; return the first difference.

    Counts in `answers` which commands and scripts had which kind of reply.
    """
    history, sides = History(seed), (Side(real.run), Side(run_on(model)))
    ran: list[Command] = []
    for command in chain(preparation(), history.commands(count)):
        script = _script(command)
        if command[0] == "XADD" or script in _APPENDING:
            _wait_for_next_millisecond()
        expected, found = (side.answer(command) for side in sides)
        ran.append(command)
        if expected != found:
            return Difference(seed, ran, expected, found)
        answers[script or str(command[0]), _kind(found)] += 1
        history.observe(command, found, sides[0].known_ids)
    return None


def _kind(reply: Any) -> str:
    """Return a short name of what a reply means."""
    if isinstance(reply, tuple):
        return str(reply[1]).split()[0]
    if isinstance(reply, list):
        verdict = reply[0] if reply else "empty"
        return verdict if isinstance(verdict, str) and verdict.isalpha() else "array"
    return str(reply) if isinstance(reply, int) or reply is None else "string"


def preparation() -> list[Command]:
    """Return the commands with which every history begins."""
    loads: list[Command] = [("SCRIPT", "FLUSH")]
    loads += [
        ("SCRIPT", "LOAD", each.text)
        for each in vars(scripts).values()
        if isinstance(each, scripts.Script)
    ]
    return [("FLUSHALL",), *loads]


def _wait_for_next_millisecond() -> None:
    """Wait, so that no two commands make the same id in two streams: its number would be wrong."""
    began_ms = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == began_ms:
        time.sleep(0.000_1)
