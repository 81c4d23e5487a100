"""The keys of one node of a cluster."""

import pickle
from collections.abc import Sequence
from typing import Final

from redis.crc import key_slot

from tests.simulation.redis.arguments import integer
from tests.simulation.redis.commands import MOVABLE_KEYS, Args, Command
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.model import RedisModel
from tests.simulation.redis.resp import OK, CommandError, Reply, Status
from tests.simulation.redis.slots import SlotView

NOT_LOCAL: Final = "ERR Attempted to access a non local key in a cluster node"


class ClusterModel(RedisModel):
    """The keys of one node."""

    mode = "cluster"
    view: SlotView
    asking = False
    """Whether the client of the running command has sent ASKING."""

    def redirection(self, keys: Sequence[bytes]) -> CommandError | None:
        """Return the error with which the node rejects a command with these keys."""
        self._set_time()
        return self.view.redirection(keys, self._exists, asking=self.asking)

    def has(self, key: bytes) -> bool:
        """Return whether the node has a key."""
        self._set_time()
        return self._exists(key)

    def keys_in(self, slot: int) -> list[bytes]:
        """Return the keys of a slot."""
        self._set_time()
        return [key for key in self.db.existing() if key_slot(key) == slot]

    def dump(self, key: bytes) -> tuple[bytes, int]:
        """Return the value of a key for RESTORE, in a format of the model, and its expiry or 0."""
        return pickle.dumps(self.db.lookup(key)), self.db.expiry_ms(key) or 0

    def described_commands(self) -> Reply:
        """Return name, arity, flags, first and last key and step of each command."""
        found: dict[str, Reply] = {}
        for each in self._table.commands:
            name = each.name.partition("|")[0].lower()
            flags: list[Reply] = [Status(b"movablekeys")] if each.name in MOVABLE_KEYS else []
            last = -1 if each.step else each.first_key
            keys: list[Reply] = [each.first_key, last, each.step or 1]
            found[name] = [name.encode(), each.arity, flags, *keys]
        return [*found.values()]

    def _exists(self, key: bytes) -> bool:
        return self.db.lookup(key) is not None

    def _run_from_script(self, args: Args) -> Reply:
        if self.view.migrating and not self._repeating and self._is_gone(args):
            raise CommandError(NOT_LOCAL)
        return super()._run_from_script(args)

    def _is_gone(self, args: Args) -> bool:
        """Return whether a script has removed a key that this command of it needs.

        Its other keys are there: the node checks the keys of a script before it runs.
        """
        try:
            keys = self.keys_of(args)
        except CommandError:
            return False  # the command is unknown
        return self.view.redirection(keys, self._exists, asking=self.asking) is not None

    def _own_commands(self) -> dict[bytes, Command]:
        restore = Command(
            "RESTORE", _restore, -4, writes=True, denied_if_full=True, first_key=1, step=0
        )
        return {**super()._own_commands(), b"RESTORE": restore}


def _restore(db: Keyspace, args: Args) -> Reply:
    """Store a value of `ClusterModel.dump`, with an absolute expiry."""
    db.put(args[1], pickle.loads(args[3]))
    db.expire_at(args[1], integer(args[2]) or None)
    db.changed(args[1])
    return OK
