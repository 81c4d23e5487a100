"""States in which a server rejects commands: it is full, a replica, or still loading."""

from tests.simulation.redis.commands import Command
from tests.simulation.redis.dialect import Dialect

OOM = "OOM command not allowed when used memory > 'maxmemory'."
NO_REPLICAS = "NOREPLICAS Not enough good replicas to write."
READ_ONLY = "READONLY You can't write against a read only replica."

_RUN_WHILE_LOADING = frozenset(
    {"AUTH", "CLIENT", "DISCARD", "EXEC", "HELLO", "INFO", "MULTI", "PUBSUB", "QUIT", "SELECT"}
    | {"SUBSCRIBE", "TIME", "UNSUBSCRIBE"}
)


class Faults:
    """What is wrong with a server now."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.full = False
        """Whether memory is full: commands that need more of it fail."""
        self.read_only = False
        """Whether the server is a replica: writes fail."""
        self.lacks_replicas = False
        """Whether fewer replicas are connected than `min-replicas-to-write`: writes fail."""
        self.loading = False
        """Whether the server is still loading its data: almost every command fails."""

    def refusal(self, command: Command) -> str | None:
        """Return the error with which the server rejects a command; None if it runs."""
        denied = self._denial(writes=command.writes, needs_memory=command.denied_if_full)
        return denied or self.refusal_while_loading(command.name)

    def script_refusal(self, flags: frozenset[str] | None) -> str | None:
        """Return the error with which the server rejects a script; None if it runs.

        Without flags, Redis checks each command of the script.
        """
        if flags is None or "no-writes" in flags:
            return None
        return self._denial(writes=True, needs_memory="allow-oom" not in flags)

    def _denial(self, *, writes: bool, needs_memory: bool) -> str | None:
        if self.full and needs_memory:
            return OOM
        if writes and self.lacks_replicas:
            return NO_REPLICAS
        return READ_ONLY if writes and self.read_only else None

    def refusal_while_loading(self, name: str) -> str | None:
        """Return the error with which a loading server rejects a command; None if it runs."""
        if self.loading and name not in _RUN_WHILE_LOADING:
            return self._dialect.loading
        return None
