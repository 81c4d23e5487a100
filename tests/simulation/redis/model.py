"""One server without its connections: runs commands, scripts and transactions, one at a time."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from tests.simulation.redis import (  # noqa: F401 - their commands
    aggregates,
    deliveries,
    entries,
    groups,
    keys,
    reads,
)
from tests.simulation.redis.arguments import integer
from tests.simulation.redis.commands import (
    COMMANDS,
    Args,
    Command,
    CommandTable,
    Handler,
    Wait,
    keys_of,
)
from tests.simulation.redis.dialect import VALKEY_9, Dialect
from tests.simulation.redis.faults import Faults
from tests.simulation.redis.keyspace import Keyspace
from tests.simulation.redis.log import Record, WriteLog
from tests.simulation.redis.resp import OK, CommandError, NilArray, Reply
from tests.simulation.redis.scripts import LuaScripts, Script

_UNSCRIPTABLE = frozenset({"EVAL", "EVALSHA", "SCRIPT|LOAD", "SCRIPT|EXISTS", "SCRIPT|FLUSH"})


class ScriptRun(NamedTuple):
    """One run of a script."""

    name: str
    """The name of turnbus's script; the SHA-1 of another one."""
    keys: Sequence[bytes]
    args: Sequence[bytes]
    reply: Reply
    """The reply, or the error."""


class RedisModel:
    """The keys, scripts, faults and log of one server."""

    mode = "standalone"

    def __init__(
        self, clock: Callable[[], float], rng: random.Random, dialect: Dialect = VALKEY_9
    ) -> None:
        """`clock` returns Unix seconds."""
        self._dialect = dialect
        self._clock = clock
        self.time_offset_s = 0.0
        """Seconds by which the server's clock is wrong. A change is a jump of its TIME."""
        self.run_id = f"{rng.getrandbits(160):040x}"
        self.db = Keyspace(dialect)
        self.faults = Faults(dialect)
        self.log = WriteLog(Keyspace(dialect))
        self.on_script: Callable[[ScriptRun], None] | None = None
        """Called after each script, before its reply is sent. It may run commands."""
        self._lua = LuaScripts(self._run_from_script)
        self._loaded: dict[bytes, Script] = {}
        self._running: Script | None = None
        self._finished: list[ScriptRun] = []
        self._declared: frozenset[bytes] = frozenset()
        self._repeating = False
        self._table = CommandTable({**COMMANDS, **self._own_commands()})

    # -- running commands

    def execute(self, *args: bytes | str | int) -> Reply:
        """Run one command now, whatever the faults. Raises `CommandError`."""
        call = [part if isinstance(part, bytes) else str(part).encode() for part in args]
        faults, self.faults = self.faults, Faults(self._dialect)
        try:
            reply = self.run(call)
        finally:
            self.faults = faults
        if isinstance(reply, CommandError):
            raise reply
        return NilArray() if isinstance(reply, Wait) else reply

    def run(self, args: Args) -> Reply | Wait:
        """Run one command of a client. An error is a reply."""
        self._set_time()
        before = self.db.changes
        try:
            reply = self._run(args)
        except CommandError as error:
            reply = error
        if self.db.changes != before:
            self._record([args])
        self._report_scripts()
        return reply

    def run_transaction(self, commands: Sequence[Args]) -> Reply:
        """Run the commands of a transaction, in which nothing waits."""
        self._set_time()
        before = self.db.changes
        replies: list[Reply] = []
        for args in commands:
            try:
                reply = self._run(args)
            except CommandError as error:
                reply = error
            replies.append(NilArray() if isinstance(reply, Wait) else reply)
        if self.db.changes != before:
            self._record(commands)
        self._report_scripts()
        return replies

    def resume(self, args: Args, wait: Wait) -> Reply:
        """Run the command of a waiting client again; None if it still has to wait."""
        self._set_time()
        before = self.db.changes
        try:
            reply = wait.attempt(self.db)
        except CommandError as error:
            return error
        if self.db.changes != before:
            self._record([args])
        return reply

    def keys_of(self, args: Args) -> Sequence[bytes]:
        """Return the keys of a call. Raises `CommandError` if there is no such command."""
        return keys_of(self._table.find(args), args)

    def check(self, args: Args) -> Command:
        """Return the command of a call. Raises `CommandError` if the server rejects it now."""
        command = self._table.find(args)
        refusal = self.faults.refusal(command)
        if refusal is not None:
            raise CommandError(refusal)
        return command

    def _set_time(self) -> None:
        self.db.set_time(round((self._clock() + self.time_offset_s) * 1e6))

    def _run(self, args: Args) -> Reply | Wait:
        return self.check(args).handler(self.db, args)

    # -- persistence

    def restart(self, lost_writes: int = 0) -> None:
        """Come back from the log, without its last writes, and without scripts."""
        self._loaded.clear()
        self.db, records = self.log.cut(lost_writes)
        faults, self.faults = self.faults, Faults(self._dialect)
        self._repeating = True
        try:
            for record in records:
                self.db.set_time(record.now_us)
                for args in record.commands:
                    with suppress(CommandError):  # it failed the first time too, after a change
                        self._run(args)
        finally:
            self._repeating = False
            self.faults = faults
        self._set_time()
        self.db.forget_reads()

    def _record(self, commands: Sequence[Args]) -> None:
        # The scripts that are loaded do not survive, so the log has their texts.
        written = [self._with_text(args) for args in commands]
        self.log.append(Record(self.db.now_us, written), self.db)

    def _with_text(self, args: Args) -> Args:
        if args[0].upper() != b"EVALSHA":
            return args
        script = self._loaded.get(args[1].lower())
        return args if script is None else [b"EVAL", script.text, *args[2:]]

    # -- scripts

    def _own_commands(self) -> dict[bytes, Command]:
        def own(name: str, handler: Handler, arity: int) -> Command:
            return Command(
                name, handler, arity, writes=False, denied_if_full=False, first_key=0, step=0
            )

        commands = (
            own("EVAL", self._eval, -3),
            own("EVALSHA", self._evalsha, -3),
            own("SCRIPT|LOAD", self._script_load, 3),
            own("SCRIPT|EXISTS", self._script_exists, -3),
            own("SCRIPT|FLUSH", self._script_flush, -2),
            own("INFO", self._info, -1),
        )
        return {command.name.encode(): command for command in commands}

    def _eval(self, db: Keyspace, args: Args) -> Reply:
        script = self._lua.compile(args[1])
        if not self._repeating:
            self._loaded[script.sha] = script
        return self._run_script(script, args)

    def _evalsha(self, db: Keyspace, args: Args) -> Reply:
        script = self._loaded.get(args[1]) or self._loaded.get(args[1].lower())
        if script is None:
            raise CommandError(self._dialect.no_script)
        return self._run_script(script, args)

    def _run_script(self, script: Script, args: Args) -> Reply:
        count = integer(args[2])
        if count < 0:
            raise CommandError("ERR Number of keys can't be negative")
        if count > len(args) - 3:
            raise CommandError("ERR Number of keys can't be greater than number of args")
        refusal = self.faults.script_refusal(script.flags)
        if refusal is not None:
            raise CommandError(refusal)
        declared, values = args[3 : 3 + count], args[3 + count :]
        self._running, self._declared = script, frozenset(declared)
        try:
            reply = self._lua.run(script, declared, values)
        except CommandError as error:
            reply = error
        finally:
            self._running = None
        if self.on_script is not None and not self._repeating:
            self._finished.append(ScriptRun(script.name, declared, values, reply))
        return reply

    def _report_scripts(self) -> None:
        """Call the hook when the log has the scripts: commands that it runs come behind them."""
        finished, self._finished = self._finished, []
        for run in finished:
            if self.on_script is not None:
                self.on_script(run)

    def _run_from_script(self, args: Args) -> Reply:
        """Run a command of the running script, which must have declared its keys."""
        script = self._running
        if script is None:
            raise RuntimeError("a command of a script that does not run")
        try:
            command = self._table.find(args)
        except CommandError as error:
            if "wrong number" in error.text:
                text = "ERR Wrong number of args calling Redis command from script"
            else:
                text = "ERR Unknown Redis command called from script"
            raise CommandError(text) from error
        if command.name in _UNSCRIPTABLE:
            raise CommandError("ERR This Redis command is not allowed from script")
        if script.flags is None:
            refusal = self.faults.refusal(command)
            if refusal is not None:
                raise CommandError(refusal)
        elif command.writes and "no-writes" in script.flags:
            raise CommandError("ERR Write commands are not allowed from read-only scripts.")
        for key in command.keys(args):
            if key not in self._declared:
                raise RuntimeError(
                    f"script {script.name} uses the key {key!r} without declaring it"
                )
        reply = command.handler(self.db, args)
        if isinstance(reply, Wait):
            return None
        return reply

    def _script_load(self, db: Keyspace, args: Args) -> Reply:
        script = self._lua.compile(args[2])
        self._loaded[script.sha] = script
        return script.sha

    def _script_exists(self, db: Keyspace, args: Args) -> Reply:
        return [int(digest.lower() in self._loaded) for digest in args[2:]]

    def _script_flush(self, db: Keyspace, args: Args) -> Reply:
        if args[2:] not in ([], [b"SYNC"], [b"ASYNC"]):
            raise CommandError("ERR SCRIPT FLUSH only support SYNC|ASYNC option")
        self._loaded.clear()
        return OK

    def _info(self, db: Keyspace, args: Args) -> Reply:
        """Return what the worker and its tools read of INFO."""
        wanted = {name.lower().decode() for name in args[1:]} - {"all", "default", "everything"}
        sections: dict[str, dict[str, Any]] = {
            "server": {
                **self._dialect.versions,
                "redis_mode": self.mode,
                "server_mode": self.mode,
                "process_id": 1,
                "run_id": self.run_id,
                "tcp_port": 6379,
            },
            "memory": {"maxmemory": 0, "maxmemory_policy": "noeviction"},
            "persistence": {"loading": int(self.faults.loading)},
            "replication": {"role": "slave" if self.faults.read_only else "master"},
        }
        return "\r\n".join(
            f"# {name.capitalize()}\r\n"
            + "".join(f"{field}:{value}\r\n" for field, value in about.items())
            for name, about in sections.items()
            if not wanted or name in wanted
        ).encode()
