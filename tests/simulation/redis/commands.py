"""The table of commands: name, handler, arity, flags and keys.

A handler gets the keyspace and the arguments with the command's name. It returns a reply, raises
`CommandError`, or returns a `Wait` if its client may wait.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.resp import CommandError, Reply, text_of

Args = list[bytes]


class Wait:
    """No reply yet: the client waits until `attempt` returns one, or for a time."""

    __slots__ = ("attempt", "keys", "timeout_ms")

    def __init__(
        self, keys: Sequence[bytes], timeout_ms: int, attempt: Callable[[Keyspace], Reply]
    ) -> None:
        self.keys = keys
        self.timeout_ms = timeout_ms
        """0 waits without end."""
        self.attempt = attempt
        """Returns None while there is nothing to reply."""


Handler = Callable[[Keyspace, Args], Reply | Wait]


class Command:
    """One command. A negative arity is a minimum; it counts the name."""

    __slots__ = ("arity", "denied_if_full", "first_key", "handler", "name", "step", "writes")

    def __init__(
        self,
        name: str,
        handler: Handler,
        arity: int,
        *,
        writes: bool,
        denied_if_full: bool,
        first_key: int,
        step: int,
    ) -> None:
        self.name = name
        self.handler = handler
        self.arity = arity
        self.writes = writes
        self.denied_if_full = denied_if_full
        self.first_key = first_key
        """Position of the first key; 0 if the command has none at a fixed place."""
        self.step = step
        """Distance to the next key; 0 if the command has one key."""

    def keys(self, args: Args) -> Iterable[bytes]:
        """Return the keys of a call."""
        if not self.first_key:
            return ()
        return args[self.first_key :: self.step] if self.step else (args[self.first_key],)

    def accepts(self, count: int) -> bool:
        """Return whether a call may have this number of arguments."""
        return count == self.arity if self.arity >= 0 else count >= -self.arity


COMMANDS: Final[dict[bytes, Command]] = {}
"""The commands that need only a keyspace, by name. Subcommands are named `XINFO|STREAM`."""


def command(
    name: str,
    arity: int,
    *,
    writes: bool = False,
    denied_if_full: bool = False,
    first_key: int = 1,
    step: int = 0,
) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        COMMANDS[name.encode()] = Command(
            name,
            handler,
            arity,
            writes=writes,
            denied_if_full=denied_if_full,
            first_key=first_key,
            step=step,
        )
        return handler

    return register


MOVABLE_KEYS: Final = frozenset({"EVAL", "EVALSHA", "XREAD", "XREADGROUP"})
"""Commands whose keys have a place that depends on other arguments."""


def keys_of(command: Command, args: Args) -> Sequence[bytes]:
    """Return the keys of a call, `MOVABLE_KEYS` too.

    A call whose keys cannot be found has none: the command will reject it.
    """
    if command.name in ("EVAL", "EVALSHA"):
        count = int(args[2]) if args[2].isdigit() else 0
        return args[3 : 3 + count] if count <= len(args) - 3 else ()
    if command.name in MOVABLE_KEYS:
        names = [arg.upper() for arg in args]
        named = args[names.index(b"STREAMS") + 1 :] if b"STREAMS" in names else []
        return named[: len(named) // 2]
    return [*command.keys(args)]


class CommandTable:
    """The commands of one server."""

    def __init__(self, commands: Mapping[bytes, Command]) -> None:
        self._commands = dict(commands)
        self._containers = {name.partition(b"|")[0] for name in commands if b"|" in name}

    @property
    def commands(self) -> Iterable[Command]:
        """All commands and subcommands."""
        return self._commands.values()

    def find(self, args: Args) -> Command:
        """Return the command of a call. Raises `CommandError` if the server would reject it."""
        found = self._commands.get(args[0]) or self._find(args)
        if not found.accepts(len(args)):
            raise CommandError(wrong_arity(found.name.lower()))
        return found

    def _find(self, args: Args) -> Command:
        name = args[0].upper()
        if name in self._containers:
            if len(args) < 2:
                raise CommandError(wrong_arity(text_of(name).lower()))
            found = self._commands.get(b"%b|%b" % (name, args[1].upper()))
            if found is None:
                raise CommandError(
                    f"ERR unknown subcommand '{text_of(args[1])}'. Try {text_of(name)} HELP."
                )
            return found
        found = self._commands.get(name)
        if found is None:
            shown = "".join(f"'{text_of(arg)}' " for arg in args[1:])
            raise CommandError(
                f"ERR unknown command '{text_of(args[0])}', with args beginning with: {shown}"
            )
        return found


def wrong_arity(name: str) -> str:
    """Return the error of a call with too few or too many arguments."""
    return f"ERR wrong number of arguments for '{name}' command"
