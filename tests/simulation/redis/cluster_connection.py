"""A connection to a node of a cluster: redirections, ASKING, and sharded channels."""

from typing import TYPE_CHECKING, Final

from tests.simulation.redis.commands import Args, Wait
from tests.simulation.redis.connection import Connection
from tests.simulation.redis.resp import OK, CommandError, Reply, text_of

if TYPE_CHECKING:
    from tests.simulation.redis.cluster import ClusterNode

CLUSTER_DOWN: Final = "CLUSTERDOWN The cluster is down"

_WITH_CHANNELS: Final = frozenset({b"SSUBSCRIBE", b"SUNSUBSCRIBE"})
"""Commands of a client whose channels are in slots."""


def _is_there(_: bytes) -> bool:
    """Ignore whether a key exists: EXEC checks it, and channels move with the slot."""
    return True


class ClusterConnection(Connection):
    """The server's side of a connection to a node."""

    _server: "ClusterNode"

    def __init__(self, server: "ClusterNode", client_id: int) -> None:
        super().__init__(server, client_id)
        self._asking = False

    def _run(self, args: Args) -> Reply | Wait:
        self._server.model.asking = self._asking
        name = args[0].upper()
        error = self._redirection(name, args)
        if error is None:
            reply = super()._run(args)
        else:
            reply = error
            if name == b"EXEC":
                self._transaction = None
            elif self._transaction is not None:
                self._transaction_failed = True
        if name != b"ASKING" and self._transaction is None and not isinstance(reply, Wait):
            self._asking = False
        return reply

    def _redirection(self, name: bytes, args: Args) -> CommandError | None:
        server, model = self._server, self._server.model
        if name in _WITH_CHANNELS:
            return server.view.redirection(args[1:], _is_there, asking=False)
        if name == b"EXEC":
            commands = () if self._transaction_failed else self._transaction or ()
            keys = [key for each in commands for key in model.keys_of(each)]
        elif name in self.own_commands:
            return None
        else:
            try:
                keys = [*model.keys_of(args)]
            except CommandError:
                return None  # the command is unknown: that is checked first
        if keys and not server.has_joined:
            return CommandError(CLUSTER_DOWN)
        if self._transaction is not None and name != b"EXEC":
            return server.view.redirection(keys, _is_there, asking=self._asking)
        return model.redirection(keys)

    def resume(self, args: Args, wait: Wait) -> Reply:
        """Run the command that waits again, as a new one: its keys may have moved.

        XREADGROUP runs again if a key is removed, XREAD only if one has entries.
        """
        model = self._server.model
        model.asking = self._asking
        if args[0].upper() == b"XREADGROUP":
            return model.redirection(wait.keys) or super().resume(args, wait)
        reply = super().resume(args, wait)
        return None if reply is None else model.redirection(wait.keys) or reply

    def end_wait(self, reply: Reply) -> None:
        """Reply to the command that waits, and go on with the ones behind it."""
        self._asking = False
        super().end_wait(reply)

    def drop_channel(self, channel: bytes) -> None:
        """Notify the client that the node no longer serves a channel."""
        self.leave(channel)
        self._reply([b"sunsubscribe", channel, len(self.channels)])
        self._flush()

    def _ask(self, args: Args) -> Reply:
        self._asking = True
        return OK

    def _mark(self, args: Args) -> Reply:
        """Accept READONLY and READWRITE, which change nothing on a master."""
        return OK

    def _ssubscribe(self, args: Args) -> Reply:
        return self._subscribe(args, b"ssubscribe")

    def _sunsubscribe(self, args: Args) -> Reply:
        return self._unsubscribe(args, b"sunsubscribe")

    def _pubsub(self, args: Args) -> Reply:
        """Describe sharded channels: a client of a cluster uses no others here."""
        kind = args[1].upper()
        if not kind.startswith(b"SHARD"):
            raise CommandError(f"ERR unknown subcommand '{text_of(args[1])}'. Try PUBSUB HELP.")
        return super()._pubsub([args[0], kind.removeprefix(b"SHARD"), *args[2:]])

    def _cluster(self, args: Args) -> Reply:
        return self._server.cluster_command(args)

    def _migrate(self, args: Args) -> Reply:
        return self._server.migrate(args)

    def _command(self, args: Args) -> Reply:
        """Describe the commands, as redis-py's client of clusters needs them."""
        model = self._server.model
        if len(args) > 2 and args[1].upper() == b"GETKEYS":
            return [*model.keys_of(args[2:])]
        return model.described_commands()


ClusterConnection.own_commands = {
    **{
        name: own
        for name, own in Connection.own_commands.items()
        if name not in (b"SUBSCRIBE", b"UNSUBSCRIBE")
    },
    b"ASKING": (1, ClusterConnection._ask),
    b"CLUSTER": (-2, ClusterConnection._cluster),
    b"COMMAND": (-1, ClusterConnection._command),
    b"MIGRATE": (6, ClusterConnection._migrate),
    b"PUBSUB": (-2, ClusterConnection._pubsub),
    b"READONLY": (1, ClusterConnection._mark),
    b"READWRITE": (1, ClusterConnection._mark),
    b"SSUBSCRIBE": (-2, ClusterConnection._ssubscribe),
    b"SUNSUBSCRIBE": (-1, ClusterConnection._sunsubscribe),
}
