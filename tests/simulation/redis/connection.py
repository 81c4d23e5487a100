"""One connection: parses commands, runs them in order, and keeps the state of its client."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tests.simulation.redis.commands import Args, Wait, wrong_arity
from tests.simulation.redis.keys import glob
from tests.simulation.redis.resp import (
    OK,
    CommandError,
    CommandParser,
    NilArray,
    Reply,
    Status,
    encode,
    text_of,
)

if TYPE_CHECKING:
    from tests.simulation.redis.server import RedisServer

_QUEUED = Status(b"QUEUED")
_MULTI_ENDS = frozenset({b"EXEC", b"DISCARD"})
_WHILE_SUBSCRIBED = frozenset(
    {b"SUBSCRIBE", b"UNSUBSCRIBE", b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"PING", b"QUIT"}
)


class Connection(asyncio.Protocol):
    """The server's side of one connection."""

    own_commands: Mapping[bytes, "ClientCommand"] = {}
    """The commands that use or change the state of the client, by name."""

    def __init__(self, server: "RedisServer", client_id: int) -> None:
        self._server = server
        self.client_id = client_id
        self.name = b""
        self.channels: dict[bytes, None] = {}
        self._parser = CommandParser()
        self._transport: asyncio.Transport | None = None
        self._context: Context | None = None
        self._commands: deque[Args] = deque()
        self._output: list[bytes] = []
        self._waiting_for: Args | None = None
        self._wait_timer: asyncio.TimerHandle | None = None
        self._transaction: list[Args] | None = None
        self._transaction_failed = False
        self._closing = False

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless the server is down."""
        self._context = copy_context()
        self._transport = cast("asyncio.Transport", transport)  # of any loop
        if self._server.is_up:
            self._server.connections.add(self)
        else:
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Run the commands that are complete."""
        try:
            self._commands.extend(self._parser.feed(data))
        except CommandError as error:
            self._reply(error)
            self._close()
            return
        self._run_commands()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._forget()

    def abort(self) -> None:
        """Reset the connection, without what is not sent yet."""
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        self._flush()
        self._forget()
        if self._transport is not None:
            self._transport.close()

    def _forget(self) -> None:
        self._closing = True
        self._commands.clear()
        self._output.clear()
        self._server.connections.discard(self)
        self._server.waiting.remove(self)
        if self._wait_timer is not None:
            self._wait_timer.cancel()
        for channel in [*self.channels]:
            self.leave(channel)

    def _reply(self, reply: Reply) -> None:
        self._output.append(encode(reply))

    def _flush(self) -> None:
        if self._output and self._transport is not None:
            self._transport.write(b"".join(self._output))
            self._output.clear()

    # -- commands

    def _run_commands(self) -> None:
        server = self._server
        while self._commands and self._waiting_for is None and not self._closing:
            args = self._commands.popleft()
            reply = self._run(args)
            if isinstance(reply, Wait):
                self._wait(args, reply)
            else:
                self._answer(args, reply)
            if server.model.db.ready:
                server.waiting.serve()
        self._flush()

    def _answer(self, args: Args, reply: Reply) -> None:
        if self._server.loses_reply(args):
            self.abort()
        elif not self._closing:
            self._reply(reply)

    def _run(self, args: Args) -> Reply | Wait:
        name = args[0].upper()
        own = self.own_commands.get(name)
        try:
            if own is None:
                if self._transaction is not None:
                    return self._queue(args)
                if self.channels:
                    raise _denied_while_subscribed(name)
                return self._server.model.run(args)
            return self._run_own(name, args, own)
        except CommandError as error:
            if self._transaction is not None and name not in _MULTI_ENDS:
                self._transaction_failed = True
            return error

    def _run_own(self, name: bytes, args: Args, own: "ClientCommand") -> Reply:
        arity, handler = own
        if not (len(args) == arity or (arity < 0 and len(args) >= -arity)):
            raise CommandError(wrong_arity(name.decode().lower()))
        if self.channels and name not in _WHILE_SUBSCRIBED:
            raise _denied_while_subscribed(name)
        refusal = self._server.faults.refusal_while_loading(name.decode())
        if refusal is not None:
            raise CommandError(refusal)
        return handler(self, args)

    def _queue(self, args: Args) -> Reply:
        self._server.model.check(args)
        if self._transaction is not None:
            self._transaction.append(args)
        return _QUEUED

    # -- waiting

    def _wait(self, args: Args, wait: Wait) -> None:
        self._waiting_for = args
        self._server.waiting.add(self, args, wait)
        if wait.timeout_ms:
            loop = asyncio.get_running_loop()
            self._wait_timer = loop.call_later(wait.timeout_ms / 1000, self.end_wait, NilArray())

    def resume(self, args: Args, wait: Wait) -> Reply:
        """Run the command that waits again; None if it still has to wait."""
        return self._server.model.resume(args, wait)

    def interrupt(self, error: CommandError) -> None:
        """Reply to the command that waits with an error, and close the connection."""
        self._reply(error)
        self._close()

    def end_wait(self, reply: Reply) -> None:
        """Reply to the command that waits, and go on with the ones behind it."""
        self._server.waiting.remove(self)
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        args, self._waiting_for = self._waiting_for, None
        self._answer(args or [], reply)
        self._flush()
        if self._commands:
            # Another process of a simulation may have woken this client: the rest runs in its own.
            asyncio.get_running_loop().call_soon(self._run_commands, context=self._context)

    # -- commands of a client

    def _hello(self, args: Args) -> Reply:
        if len(args) > 1 and args[1] != b"2":
            raise CommandError("NOPROTO unsupported protocol version")
        if len(args) > 2:
            raise CommandError("ERR Syntax error in HELLO option")
        about: list[Reply] = [b"server", b"valkey", b"version", b"9.1.0", b"proto", 2]
        about += [b"id", self.client_id, b"mode", self._server.model.mode.encode()]
        about += [b"role", b"master"]
        return [*about, b"modules", []]

    def _auth(self, args: Args) -> Reply:
        """Accept no password, as the server has none."""
        if len(args) == 2:
            raise CommandError(
                "ERR AUTH <password> called without any password configured for the default user. "
                "Are you sure your configuration is correct?"
            )
        if args[1] == b"default":
            return OK
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")

    def _select(self, args: Args) -> Reply:
        if args[1] != b"0":
            raise CommandError("ERR DB index is out of range")
        return OK

    def _client(self, args: Args) -> Reply:
        match args[1].upper(), len(args):
            case (b"SETINFO", 4):
                return OK
            case (b"SETNAME", 3):
                self.name = args[2]
                return OK
            case (b"GETNAME", 2):
                return self.name or None
            case (b"ID", 2):
                return self.client_id
        shown = text_of(args[1])
        raise CommandError(f"ERR unknown subcommand '{shown}'. Try CLIENT HELP.")

    def _ping(self, args: Args) -> Reply:
        if len(args) > 2:
            raise CommandError(wrong_arity("ping"))
        if self.channels:
            return [b"pong", args[1] if len(args) > 1 else b""]
        return args[1] if len(args) > 1 else Status(b"PONG")

    def _quit(self, args: Args) -> Reply:
        self._reply(OK)
        self._close()
        return OK  # nothing is sent after the close

    def _multi(self, args: Args) -> Reply:
        if self._transaction is not None:
            raise CommandError("ERR Command 'multi' not allowed inside a transaction")
        self._transaction, self._transaction_failed = [], False
        return OK

    def _exec(self, args: Args) -> Reply:
        commands, self._transaction = self._transaction, None
        if commands is None:
            raise CommandError("ERR EXEC without MULTI")
        if self._transaction_failed:
            raise CommandError("EXECABORT Transaction discarded because of previous errors.")
        return self._server.model.run_transaction(commands)

    def _discard(self, args: Args) -> Reply:
        if self._transaction is None:
            raise CommandError("ERR DISCARD without MULTI")
        self._transaction = None
        return OK

    def _subscribe(self, args: Args, kind: bytes = b"subscribe") -> Reply:
        """Subscribe to channels; each has a reply of its own."""
        replies: list[Reply] = []
        for channel in args[1:]:
            self.channels[channel] = None
            self._server.channels.setdefault(channel, {})[self] = None
            replies.append([kind, channel, len(self.channels)])
        return self._send_all_but_last(replies)

    def _unsubscribe(self, args: Args, kind: bytes = b"unsubscribe") -> Reply:
        replies: list[Reply] = []
        for channel in args[1:] or [*self.channels]:
            self.leave(channel)
            replies.append([kind, channel, len(self.channels)])
        return self._send_all_but_last(replies or [[kind, None, 0]])

    def _send_all_but_last(self, replies: list[Reply]) -> Reply:
        for reply in replies[:-1]:
            self._reply(reply)
        return replies[-1]

    def leave(self, channel: bytes) -> None:
        """Subscribe to a channel no more."""
        self.channels.pop(channel, None)
        subscribers = self._server.channels.get(channel, {})
        subscribers.pop(self, None)
        if not subscribers:
            self._server.channels.pop(channel, None)

    def _pubsub(self, args: Args) -> Reply:
        match args[1].upper():
            case b"NUMSUB":
                return [
                    part for name in args[2:] for part in (name, self._server.subscribers(name))
                ]
            case b"CHANNELS" if len(args) <= 3:
                matches = glob(args[2] if len(args) == 3 else b"*")
                return [name for name in self._server.channels if matches(name)]
        raise CommandError(f"ERR unknown subcommand '{text_of(args[1])}'. Try PUBSUB HELP.")


ClientCommand: TypeAlias = tuple[int, Callable[[Any, Args], Reply]]
"""Arity, and a method of the connection."""

Connection.own_commands = {
    b"AUTH": (-2, Connection._auth),
    b"CLIENT": (-2, Connection._client),
    b"DISCARD": (1, Connection._discard),
    b"EXEC": (1, Connection._exec),
    b"HELLO": (-1, Connection._hello),
    b"MULTI": (1, Connection._multi),
    b"PING": (-1, Connection._ping),
    b"PUBSUB": (-2, Connection._pubsub),
    b"QUIT": (-1, Connection._quit),
    b"SELECT": (2, Connection._select),
    b"SUBSCRIBE": (-2, Connection._subscribe),
    b"UNSUBSCRIBE": (-1, Connection._unsubscribe),
}


def _denied_while_subscribed(name: bytes) -> CommandError:
    return CommandError(
        f"ERR Can't execute '{text_of(name).lower()}': only (P|S)SUBSCRIBE / "
        "(P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
    )
