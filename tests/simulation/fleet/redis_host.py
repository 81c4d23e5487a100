"""One Redis server of a simulated fleet: the model on a host, whose process can be killed."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio

from tests.simulation.fleet.history import ScriptRun
from tests.simulation.fleet.producers import Refusal
from tests.simulation.redis import model
from tests.simulation.redis.cluster import CRON_INTERVAL_S, ClusterNode
from tests.simulation.redis.resp import CommandError, Reply, Status
from tests.simulation.redis.server import RedisServer
from tests.simulation.virtual.hosts import Host
from worker.bus import scripts
from worker.bus.scripts import Script

PORT: Final = 6379

_LAST_ID: Final = b"last-generated-id"


class RedisHost:
    """One server. Its keys outlive its process: every write is in its log."""

    def __init__(
        self,
        host: Host,
        server: RedisServer,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        """`clock` returns the Unix time of the host, `now` the virtual time."""
        self.host: Final = host
        self.server: Final = server
        self.server.model.on_script = self._on_script
        self.on_script: Callable[[ScriptRun], None] = _ignore
        self._now = now
        self._clock = clock
        # A mutant's script has another digest than the one that the model knows.
        self._names = {
            each.sha: each.name for each in vars(scripts).values() if isinstance(each, Script)
        }

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host.address}:{PORT}"

    @property
    def up(self) -> bool:
        """Whether the server runs."""
        return self.server.is_up

    @property
    def serving(self) -> bool:
        """Whether the server runs and answers: a master of a cluster waits after its start."""
        return self.up and (not isinstance(self.server, ClusterNode) or self.server.has_joined)

    def start(self) -> None:
        """Start the server's process; a killed one comes back with the keys of its log."""
        if not self.up:
            self.server.restart()
        self.host.start(self._serve, "redis")

    def kill(self) -> None:
        """Kill the process: connections are reset."""
        self.server.kill()
        self.host.crash()

    def fail_over(self, lost_s: float) -> None:
        """Let a replica become the master that has not received the writes of the last seconds."""
        lost = self.server.model.log.count_since(self._clock() - lost_s)
        self.server.restart(lost_writes=lost)

    def fill(self) -> None:
        """Let memory be full: appends are rejected."""
        self.server.faults.full = True

    def free(self) -> None:
        """End `fill`."""
        self.server.faults.full = False

    def command(self, *args: bytes | str | int) -> Reply:
        """Run a command beside the network, also on a full server; None while none runs."""
        if not self.up:
            return None
        reply = self.server.model.execute(*args)
        self._serve_waiting()
        return reply

    def commit_number(self, state_key: bytes) -> int | None:
        """Return the number of the last commit of a session's owner."""
        state = self.server.model.db.hash(state_key)
        return None if state is None else int(state.get(b"commit", b"0"))

    def last_id(self, key: str) -> bytes | None:
        """Return the last id of a stream, 0-0 of a missing one; None for another type."""
        kind = self.command("TYPE", key)
        if kind != Status(b"stream"):
            return b"0-0" if kind == Status(b"none") else None
        reply: Any = self.command("XINFO", "STREAM", key)
        last_id: bytes = dict(zip(reply[::2], reply[1::2], strict=True))[_LAST_ID]
        return last_id

    def append(self, key: str, fields: Mapping[str, bytes | str]) -> bytes | Refusal:
        """Append an entry to a stream, as a producer does."""
        if not self.serving:
            return Refusal.AWAY
        call = [b"XADD", key.encode(), b"*"]
        for name, value in fields.items():
            call += [name.encode(), value.encode() if isinstance(value, str) else value]
        reply = self.server.model.run(call)
        if isinstance(reply, CommandError):
            return Refusal.OVER if reply.text.startswith("WRONGTYPE") else Refusal.FULL
        self._serve_waiting()
        if not isinstance(reply, bytes):
            raise TypeError(f"XADD returned {reply!r}")
        if b"encoding" in call:
            self.on_script(ScriptRun(self._now(), "announce", call[1:2], (), reply))
        return reply

    def _serve_waiting(self) -> None:
        if self.server.model.db.ready:
            self.server.waiting.serve()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(self.server, self.host.address, PORT)
        while isinstance(self.server, ClusterNode):
            await anyio.sleep(CRON_INTERVAL_S)
            self.server.cron()
        await anyio.sleep_forever()

    def _on_script(self, run: model.ScriptRun) -> None:
        name = self._names.get(run.name, run.name)
        self.on_script(ScriptRun(self._now(), name, run.keys, run.args, run.reply))


def _ignore(_: ScriptRun) -> None:
    pass
