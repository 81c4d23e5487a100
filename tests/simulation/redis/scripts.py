"""Lua scripts, run by Lua 5.1 as Redis runs them: atomically, and at a time that stands still.

The environment has what turnbus's scripts use: no `cjson.encode`, `cmsgpack`, `bit` or `struct`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from lupa.lua51 import LuaRuntime

from tests.simulation.redis.resp import CommandError, NilArray, Reply, Status, text_of
from worker.bus import scripts

FLAGS: Final = {"no-writes", "allow-oom", "allow-stale", "no-cluster", "allow-cross-slot-keys"}

NAMES: Final[dict[bytes, str]] = {
    each.sha.encode(): each.name
    for each in vars(scripts).values()
    if isinstance(each, scripts.Script)
}
"""Names of turnbus's scripts by SHA-1."""

_ENVIRONMENT: Final = Path(__file__).with_name("environment.lua").read_bytes()
_SHEBANG: Final = re.compile(rb"#!([^\n]*)")

_SCALAR, _SCALARS, _TABLE, _ERROR, _STATUS = range(5)
"""Kinds of values that cross to and from Lua; see `environment.lua`."""

_NESTED: Final = frozenset({list, Status, NilArray})
_SCALAR_TYPES: Final = (bytes, int)

RunCommand = Callable[[list[bytes]], Reply]


class Script:
    """One compiled script."""

    def __init__(self, text: bytes, function: Any, flags: frozenset[str] | None) -> None:
        self.text = text
        self.sha = sha1(text)
        self.name = NAMES.get(self.sha, self.sha.decode())
        self.function = function
        self.flags = flags
        """None if the script names no engine: Redis then checks each of its commands."""


def sha1(text: bytes) -> bytes:
    """Return the name under which a script is called."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


class LuaScripts:
    """The Lua interpreter of one server. It stays over restarts of the server."""

    def __init__(self, run_command: RunCommand) -> None:
        self._run_command = run_command
        self._lua = LuaRuntime(
            unpack_returned_tuples=True,
            encoding=None,
            register_eval=False,
            register_builtins=False,
        )
        begin = self._lua.eval(b"function(text, ...) return assert(loadstring(text))(...) end")
        self._compile, self._call, set_json, protect = begin(
            _ENVIRONMENT, self._called_from_lua, _ignore_log, sha1
        )
        set_json(self._decode_json, _Null())
        protect()
        self._compiled: dict[bytes, Script] = {}
        self._internal_error: Exception | None = None

    def compile(self, text: bytes) -> Script:
        """Compile a script. Raises `CommandError` if Redis would reject it."""
        digest = sha1(text)
        if digest not in self._compiled:
            flags = _flags(text)
            body = _SHEBANG.sub(b"", text, count=1) if flags is not None else text
            function, problem = _pair(self._compile(body))
            if function is None:
                shown = text_of(problem)
                raise CommandError(f"ERR Error compiling script (new function): {shown}")
            self._compiled[digest] = Script(text, function, flags)
        return self._compiled[digest]

    def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
        """Run a script and return its reply. Raises `CommandError` if it fails."""
        returned = self._call(script.function, len(keys), *keys, *args)
        if self._internal_error is not None:
            error, self._internal_error = self._internal_error, None
            raise error
        kind, *values = returned
        if kind == _ERROR:
            text, *line = values
            where = f" script: on @user_script:{line[0]}." if line else ""
            raise CommandError(text_of(text) + where)
        if kind == _STATUS:
            return Status(values[0])
        if kind == _TABLE:
            return self._from_lua(values[0])
        if kind == _SCALARS:
            return [self._from_lua(each) for each in values]
        return self._from_lua(values[0])

    def _called_from_lua(self, *args: Any) -> tuple[Any, ...]:
        """Run one command of a script."""
        if not args:
            return _ERROR, b"ERR Please specify at least one argument for this redis.call() call"
        try:
            reply = self._run_command(
                [each if type(each) is bytes else _argument(each) for each in args]
            )
        except CommandError as error:
            return _ERROR, error.text.encode()
        except Exception as error:
            # Lua would report it as an error of the script. `run` raises it.
            self._internal_error = error
            raise
        if isinstance(reply, list):
            if not reply:
                return _TABLE, self._lua.table()
            if any(type(each) in _NESTED for each in reply):
                return _TABLE, self._to_lua(reply)
            return (_SCALARS, *[False if each is None else each for each in reply])
        if isinstance(reply, Status):
            return _STATUS, reply.text
        return _SCALAR, self._to_lua(reply)

    def _to_lua(self, reply: Reply) -> Any:
        """Convert a reply: an integer becomes a number, nil becomes false."""
        if isinstance(reply, _SCALAR_TYPES):
            return reply
        if isinstance(reply, list):
            return self._lua.table_from([self._to_lua(each) for each in reply])
        if isinstance(reply, Status):
            return self._lua.table_from({b"ok": reply.text})
        return False

    def _from_lua(self, value: Any) -> Reply:
        """Convert a value that a script returns: a table ends at its first nil."""
        if value is None or value is False:
            return None
        if isinstance(value, bytes):
            return value
        if value is True:
            return 1
        if isinstance(value, int | float):
            return int(value)
        if value[b"err"] is not None:
            return CommandError(text_of(value[b"err"]))
        if value[b"ok"] is not None:
            return Status(value[b"ok"])
        found: list[Reply] = []
        while (each := value[len(found) + 1]) is not None:
            found.append(self._from_lua(each))
        return found

    def _decode_json(self, text: bytes) -> Any:
        return self._json_to_lua(json.loads(text))

    def _json_to_lua(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict):
            pairs = {name.encode(): self._json_to_lua(each) for name, each in value.items()}
            return self._lua.table_from(pairs)
        if isinstance(value, list):
            return self._lua.table_from([self._json_to_lua(each) for each in value])
        return _Null() if value is None else value


class _Null:
    """The `null` of JSON, which is a value in Lua."""


def _flags(text: bytes) -> frozenset[str] | None:
    shebang = _SHEBANG.match(text)
    if shebang is None:
        return None
    engine, *options = shebang[1].decode("utf-8", "replace").split()
    if engine != "lua":
        raise CommandError(f"ERR Unexpected engine in script shebang: {engine}")
    named: set[str] = set()
    for option in options:
        if not option.startswith("flags="):
            raise CommandError(f"ERR Unknown lua shebang option: {option}")
        named |= {flag for flag in option.removeprefix("flags=").split(",") if flag}
    for flag in sorted(named - FLAGS):
        raise CommandError(f"ERR Unexpected flag in script shebang: {flag}")
    return frozenset(named)


def _pair(returned: Any) -> tuple[Any, bytes]:
    return returned if isinstance(returned, tuple) else (returned, b"")


def _argument(value: Any) -> bytes:
    """Convert a number among the arguments of `redis.call`: Redis takes strings and numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CommandError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % value if isinstance(value, int) else b"%.17g" % value


def _ignore_log(*_: object) -> None:
    """Drop a line for the server's log."""
