"""The slots of a cluster as one of its nodes sees them, and where that node redirects a command."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tests.simulation.redis.resp import CommandError

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS

CROSS_SLOT: Final = "CROSSSLOT Keys in request don't hash to the same slot"
TRY_AGAIN: Final = "TRYAGAIN Multiple keys request during rehashing of slot"


class Peer:
    """A node as the others know it."""

    __slots__ = ("host", "node_id", "port")

    def __init__(self, node_id: bytes, host: str, port: int) -> None:
        self.node_id = node_id
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        """Host and port, as redirections name them."""
        return f"{self.host}:{self.port}"


class SlotView:
    """Owners of all slots, as one node knows them, and the slots that it is moving."""

    def __init__(self, myself: Peer, owners: Sequence[Peer]) -> None:
        self.myself: Final = myself
        self.owners: Final = [*owners]
        """Owner by slot."""
        self.migrating: Final[dict[int, Peer]] = {}
        """Slots that this node is giving to another one."""
        self.importing: Final[dict[int, Peer]] = {}
        """Slots that this node is getting from another one."""

    def owns(self, slot: int) -> bool:
        """Return whether this node owns a slot."""
        return self.owners[slot] is self.myself

    def moved(self, slot: int) -> CommandError:
        """Return the redirection to the owner of a slot."""
        return CommandError(f"MOVED {slot} {self.owners[slot].address}")

    def redirection(
        self, keys: Sequence[bytes], exists: Callable[[bytes], bool], *, asking: bool
    ) -> CommandError | None:
        """Return the error with which the node rejects a command; None if the command may run.

        `asking` is whether the client has sent ASKING before the command.
        """
        if not keys:
            return None
        slot = key_slot(keys[0])
        if any(key_slot(key) != slot for key in keys[1:]):
            return CommandError(CROSS_SLOT)
        if self.owns(slot):
            if slot not in self.migrating:
                return None
            missing = sum(not exists(key) for key in keys)
            if not missing:
                return None
            if missing < len(keys):
                return CommandError(TRY_AGAIN)
            return CommandError(f"ASK {slot} {self.migrating[slot].address}")
        if asking and slot in self.importing:
            if len({*keys}) > 1 and not all(map(exists, keys)):
                return CommandError(TRY_AGAIN)
            return None
        return self.moved(slot)

    def ranges(self) -> Iterator[tuple[int, int, Peer]]:
        """Yield the first and the last slot of each range, and its owner."""
        first = 0
        for slot in range(1, SLOTS + 1):
            if slot == SLOTS or self.owners[slot] is not self.owners[first]:
                yield first, slot - 1, self.owners[first]
                first = slot
