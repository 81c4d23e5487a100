"""Local processes of `turnbus` for the demo, the benchmarks and the tests with faults."""

import os
import re
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
from redis.asyncio import Redis

from schemas import Keys
from worker.bus.client.connection import connect
from worker.errors import TurnbusError
from worker.local.process import WORKER_MODULE, ChildProcess
from worker.local.redis import EmbeddedRedis
from worker.settings import ENV_PREFIX, KEY_NAMES

SPARE_FILES: Final = 200
"""Open files of a process beside the sockets of its sessions."""

WORKERS: Final = ("worker-1", "worker-2")
"""Ids of the workers of the demo and of `turnbus dev`."""

QUICK_TAKEOVER: Final = {
    "ADMIN_ADDR": "",  # two workers cannot share the default port
    "LEASE_MS": "2000",  # the minimum: a killed worker's sessions should move soon
    "REPLAY_SPEED": "2",  # and catch up soon; the local server accepts any pace
}
"""Settings of those workers."""

_URL_SETTINGS: Final = {"cartesia": "STT_URL", "flux": "STT_FLUX_URL"}

_START_TIMEOUT_S: Final = 60.0  # a cold start reads 300 MB of libraries and weights
_POLL_S: Final = 0.02


class Harness:
    """An embedded Redis and processes that use it; all end with the harness. `open` creates one."""

    def __init__(
        self,
        server: EmbeddedRedis,
        redis: Redis,
        stack: AsyncExitStack,
        base: Mapping[str, str] | None = None,
    ) -> None:
        self.server: Final = server
        self.redis: Final = redis
        self.keys: Final = Keys()
        self._stack = stack
        self._base = base

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        base: Mapping[str, str] | None = None,
        *,
        append_only: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """Start Redis; end it and all processes, and remove their files, when the block ends.

        `base` is the environment of the processes, as for `child_environment`; the other arguments
        are those of `EmbeddedRedis.start`, as are the errors.
        """
        async with AsyncExitStack() as stack:
            start = EmbeddedRedis.start(append_only=append_only, config=config)
            server = await stack.enter_async_context(start)
            redis = await stack.enter_async_context(connect(server.url))
            yield cls(server, redis, stack, base)

    @property
    def directory(self) -> Path:
        """Directory of the logs."""
        return self.server.directory

    async def start_stt_server(
        self, engine: str, *, provider: str = "cartesia"
    ) -> tuple[ChildProcess, str]:
        """Start an STT server; return it and its URL. An unexpected exit cancels the block.

        Raises TurnbusError if it does not start.
        """
        return await self._stack.enter_async_context(self.stt_server(engine, provider=provider))

    def stt_server(
        self, engine: str, *, provider: str = "cartesia", port: int = 0, control: bool = False
    ) -> AbstractAsyncContextManager[tuple[ChildProcess, str]]:
        """Return a context in which an STT server runs, as `open_stt_server` does."""
        return open_stt_server(
            self.directory, engine, self._base, provider=provider, port=port, control=control
        )

    async def start(self, process: AbstractAsyncContextManager[ChildProcess]) -> ChildProcess:
        """Start a process that ends with the harness. An unexpected exit cancels the block."""
        return await self._stack.enter_async_context(_guarded(process))

    def worker(
        self,
        worker_id: str,
        settings: Mapping[str, str],
        *,
        stdout: Path | None = None,
        variables: Mapping[str, str] | None = None,
        module: str = WORKER_MODULE,
    ) -> AbstractAsyncContextManager[ChildProcess]:
        """Return a context in which a worker runs, with more environment `variables`.

        Another `module`, as in `ChildProcess.start`, runs in its place.
        """
        common = {"REDIS_URL": self.server.url, "WORKER_ID": worker_id}
        environment = child_environment({**common, **settings}, self._base) | dict(variables or {})
        log = self.directory / f"{worker_id}.log"
        return ChildProcess.start(
            worker_id, ["run"], environment, log, module=module, stdout=stdout
        )

    async def workers_ready(self, *workers: ChildProcess) -> None:
        """Wait until each worker has written its record to Redis.

        Raises TurnbusError if one does not start.
        """
        with anyio.move_on_after(_START_TIMEOUT_S) as timeout:
            for process in workers:
                while process.running:
                    if await self.redis.hexists(self.keys.workers, process.name):
                        break
                    await anyio.sleep(_POLL_S)
        if not timeout.cancelled_caught and all(process.running for process in workers):
            return
        logs = "\n".join(f"{process.name}:\n{process.tail()}" for process in workers)
        raise TurnbusError(f"a worker did not start; the last log lines:\n{logs}")


@asynccontextmanager
async def open_stt_server(
    directory: Path,
    engine: str,
    base: Mapping[str, str] | None = None,
    *,
    provider: str = "cartesia",
    port: int = 0,
    control: bool = False,
) -> AsyncIterator[tuple[ChildProcess, str]]:
    """Run an STT server until the block ends; yield it and its URL.

    It serves the protocol of the `provider`, on any free port if `port` is 0. With `control` it has
    a control endpoint, at `control_url`.
    Raises TurnbusError if it does not start or stops unexpectedly.
    """
    command = ["stt-server", "--provider", provider, "--engine", engine, "--port", str(port)]
    command += ["--control-port", "0"] if control else []
    environment = child_environment({}, base)
    log = directory / f"stt-server-{provider}.log"
    name = f"the STT server of {provider}"
    async with _guarded(ChildProcess.start(name, command, environment, log)) as server:
        with anyio.move_on_after(_START_TIMEOUT_S):
            while not (url := re.search(r"ws://\S+", server.text())):  # noqa: ASYNC110 - a file
                await anyio.sleep(_POLL_S)
        if url is None:
            raise TurnbusError(f"{name} did not start; its last log lines:\n{server.tail()}")
        yield server, url[0]


def provider_settings(urls: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's settings for the URLs of its providers, the preferred one first."""
    addresses = {_URL_SETTINGS[provider]: url for provider, url in urls.items()}
    return {"STT_PROVIDERS": ",".join(urls), **addresses}


def control_url(stt_server: ChildProcess) -> str:
    """Return the URL of the control endpoint that an STT server printed."""
    found = re.search(r"control: (http://\S+)", stt_server.text())
    if found is None:
        raise TurnbusError("the STT server has no control endpoint")
    return found[1]


@asynccontextmanager
async def _guarded(
    start: AbstractAsyncContextManager[ChildProcess],
) -> AsyncIterator[ChildProcess]:
    """Run a process until the block ends; raise TurnbusError if it stops unexpectedly."""
    async with start as process, anyio.create_task_group() as tasks:
        tasks.start_soon(process.guard)
        yield process
        tasks.cancel_scope.cancel()


def child_environment(
    settings: Mapping[str, str], base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment `base` with only these settings of turnbus.

    The default of `base` is this process's environment without telemetry variables (`OTEL_*`).
    """
    if base is None:
        base = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    no_proxy = base.get("no_proxy") or base.get("NO_PROXY")
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith(ENV_PREFIX) and name.lower() != "no_proxy"
    }
    return {
        **kept,
        **{ENV_PREFIX + name: value for name, value in settings.items()},
        # The local servers accept any key; the user's keys are not used.
        **{names.variable: "local" for names in KEY_NAMES.values()},
        "no_proxy": f"127.0.0.1,{no_proxy}" if no_proxy else "127.0.0.1",
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and later send telemetry by default
    }


def allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process and its children to at least `count`.

    Raises TurnbusError if the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise TurnbusError(f"{count} open files are needed and {hard} allowed: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
