"""`turnbus dev`: everything on this machine, with a console page."""

import os
import signal
import sys
from functools import partial
from typing import Annotated, Literal

import anyio
from msgspec import Meta
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas import Keys
from worker.cli.command import Command, Option, run_async
from worker.cli.watch import follow, line
from worker.errors import BusUnavailableError
from worker.ingest.server import Gateway
from worker.ingest.settings import IngestSettings
from worker.local.dev.control import Control
from worker.local.dev.environment import DevEnvironment
from worker.local.harness import Harness
from worker.settings import API_KEY_VARIABLE, Settings
from worker.telemetry import logs

_HOST = "127.0.0.1"


class Dev(Command):
    """Run all parts of turnbus on this machine until Ctrl-C: speak to the page, and see turns.

    The parts are a Redis server, a local turns server with a real recognizer, two workers, and a
    gateway with the console page. The page can kill a worker, cut the sockets of the turns server,
    or take it away for 5 s. A killed worker is started again. No key, no network. English only.

    It prints the variables by which other commands reach its parts. TURNBUS_* variables do not
    concern it.

    examples:
      turnbus dev
      turnbus dev --port 9000
    """

    port: Annotated[
        Annotated[int, Meta(ge=0, le=65_535)],
        Option("port of the page and the gateway, 0 for any that is free"),
    ] = 8090
    engine: Annotated[
        Literal["speech", "script"],
        Option("speech engine of the turns server; script decodes word numbers, for tests"),
    ] = "speech"

    def run(self) -> int:
        """Run until interrupted. Raises TurnbusError if a part does not start or stops."""
        run_async(partial(_serve, self))
        return 0


async def _serve(options: Dev) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_run, options)
                await anext(aiter(signals))
                tasks.cancel_scope.cancel()
        except* RedisError as errors:
            raise BusUnavailableError("the embedded Redis stopped") from errors


async def _run(options: Dev) -> None:
    """Run all parts until cancelled."""
    _status("starting Redis ...")
    async with Harness.open(dict(os.environ)) as harness:
        settings = Settings(redis_url=harness.server.url, log_level="warning")
        logs.set_up(settings)
        environment = DevEnvironment(harness, options.engine)
        gateway = IngestSettings(ingest_listen=f"{_HOST}:{options.port}")
        control = {"/control": Control(environment).handle}
        async with (
            Gateway.open(settings, gateway, harness.redis, console=True, routes=control) as server,
            environment.run(_status),
        ):
            print(_addresses(server.port, settings, environment.stt_url), flush=True)
            await _print_turns(harness.redis)


def _addresses(port: int, settings: Settings, stt_url: str) -> str:
    base = f"{_HOST}:{port}"
    variables = {
        "TURNBUS_REDIS_URL": settings.redis_url,
        "TURNBUS_PREFIX": settings.prefix,  # the terminal may have another one
        "TURNBUS_STT_URL": stt_url,
        API_KEY_VARIABLE: "local",
    }
    exports = " ".join(f"{name}={value}" for name, value in variables.items())
    return f"""
  console       http://{base}/
  any client    ws://{base}/raw
  carriers      ws://{base}/twilio  /asterisk  /freeswitch
  events        http://{base}/events?session=ID
  metrics       http://{base}/metrics

In another terminal, push, watch, sessions, check and run use these parts after:

  export {exports}

Ctrl-C stops all of it. Turns:
"""


async def _print_turns(redis: Redis) -> None:
    async for fields in follow(redis, Keys().turns("0"), b"0-0"):
        if fields.get(b"type") == b"turn.end":
            print(line(fields), flush=True)


def _status(text: str) -> None:
    print(f"turnbus: {text}", file=sys.stderr, flush=True)
