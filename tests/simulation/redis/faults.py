"""States in which a server rejects commands: it is full, a replica, or still loading."""

from tests.simulation.redis.commands import Command

OOM = "OOM command not allowed when used memory > 'maxmemory'."
OOM_SCRIPT = (
    "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'"
)
NO_REPLICAS = "NOREPLICAS Not enough good replicas to write."
READ_ONLY = "READONLY You can't write against a read only replica."
READ_ONLY_SCRIPT = "READONLY Can not run script with write flag on readonly replica."
LOADING = "LOADING Redis is loading the dataset in memory"

_RUN_WHILE_LOADING = frozenset({"INFO", "TIME"})


class Faults:
    """What is wrong with a server now."""

    def __init__(self) -> None:
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
        if self.full and command.denied_if_full:
            return OOM
        if command.writes and (self.lacks_replicas or self.read_only):
            return NO_REPLICAS if self.lacks_replicas else READ_ONLY
        if self.loading and command.name not in _RUN_WHILE_LOADING:
            return LOADING
        return None

    def script_refusal(self, flags: frozenset[str] | None) -> str | None:
        """Return the error with which the server rejects a script; None if it runs."""
        if flags is None or "no-writes" in flags:
            return None
        if self.read_only:
            return READ_ONLY_SCRIPT
        if self.lacks_replicas:
            return NO_REPLICAS
        return OOM_SCRIPT if self.full and "allow-oom" not in flags else None
