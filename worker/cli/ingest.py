"""`turnbus ingest`: the gateway from sockets to Redis."""

import logging
import os
import signal
from functools import partial
from typing import Annotated

import anyio

from worker import telemetry
from worker.bus.client.connection import connect
from worker.cli.command import Command, Config, Option, run_async
from worker.ingest.server import Gateway
from worker.ingest.settings import IngestSettings
from worker.settings import Settings, load_ingest
from worker.telemetry import logs
from worker.urls import join_host_port

log = logging.getLogger(__name__)


class Ingest(Command):
    """Run a gateway: it turns the sockets of carriers, PBXs and browsers into sessions.

    Paths of its HTTP port: /twilio, /asterisk, /freeswitch, /raw for calls, /events for turns,
    /livez, /readyz and /metrics. TURNBUS_INGEST_* variables have all its settings. Any address
    other than loopback requires authentication.

    SIGTERM: it takes no new calls, and exits when those it has are over, or after
    TURNBUS_INGEST_DRAIN_S. A second SIGTERM ends it at once.

    examples:
      turnbus ingest
      turnbus ingest --listen 127.0.0.1:8090 --audiosocket 127.0.0.1:9092 --console
      TURNBUS_INGEST_BEARER_FILE=/run/secrets/bearer turnbus ingest --listen 0.0.0.0:8090
    """

    config: Config = None
    listen: Annotated[
        str | None,
        Option("address of the HTTP port (default 127.0.0.1:8090)", "HOST:PORT", parse=str),
    ] = None
    audiosocket: Annotated[
        str | None, Option("address of the AudioSocket port (default: off)", "HOST:PORT", parse=str)
    ] = None
    console: Annotated[bool, Option("serve the console page at /")] = False

    def run(self) -> int:
        """Run until a signal arrives and the calls are over."""
        given = {"LISTEN": self.listen, "AUDIOSOCKET": self.audiosocket}
        options = {
            f"TURNBUS_INGEST_{name}": value for name, value in given.items() if value is not None
        }
        settings, gateway = load_ingest({**os.environ, **options}, self.config)
        logs.set_up(settings)
        telemetry.configure(settings.worker_id)
        try:
            run_async(partial(_serve, settings, gateway, console=self.console))
        finally:
            telemetry.shut_down()
        return 0


async def _serve(settings: Settings, gateway: IngestSettings, *, console: bool) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            connect(settings.redis_url) as redis,
            Gateway.open(settings, gateway, redis, console=console) as server,
        ):
            host, _ = gateway.listen
            log.info("gateway: listening on http://%s", join_host_port(host, server.port))
            if server.audiosocket is not None:
                log.info("gateway: AudioSocket on %s", join_host_port(*server.audiosocket))
            received = aiter(signals)
            await anext(received)
            log.info("gateway: stopping, open calls: %d", server.calls)
            async with anyio.create_task_group() as tasks:

                async def drain() -> None:
                    await server.drain()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(drain)
                await anext(received)
                log.warning("gateway: second signal, open calls: %d", server.calls)
                tasks.cancel_scope.cancel()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Another signal during the exit must not change the code 0.
        signal.signal(number, signal.SIG_IGN)
