"""`turnbus run`: the worker."""

import argparse
import gc
import logging
import os
import signal
from contextlib import AsyncExitStack
from functools import partial

import anyio
from anyio.abc import TaskGroup
from redis.exceptions import NoPermissionError

from worker import descriptors, telemetry
from worker.admin import serve_admin
from worker.cli.command import Subparsers, add_command, add_config, read_settings, run_async
from worker.errors import BusUnavailableError
from worker.settings import Settings, api_key, check_worker_id
from worker.telemetry import logs
from worker.telemetry.gauges import WorkerGauges
from worker.telemetry.metrics import samples
from worker.telemetry.otlp import MetricPush, metric_push
from worker.telemetry.prometheus import render
from worker.worker import Worker

log = logging.getLogger(__name__)

HARD_STOP_S = 6.0
"""After the drain budget, when everything is dropped: leases hand it on. Ten seconds less what the
last exports of metrics and of spans may take."""

GC_THRESHOLDS = (20_000, 20, 20)
"""When Python looks for rings of objects: seldom, for sessions leave none, and a thousand of them
are a million objects to walk over."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "run",
        run,
        about="Run a worker: take sessions, transcribe their audio, publish their turns.\n"
        "SIGTERM hands every session on and exits; a second one does so at once.",
        examples="CARTESIA_API_KEY=... turnbus run\nturnbus run --config turnbus.toml",
    )
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal."""
    settings = read_settings(arguments)
    check_worker_id(settings)
    key = api_key(settings, os.environ)
    logs.set_up(settings)
    limit = descriptors.raise_limit(settings)
    if too_few := descriptors.shortfall(settings, limit):
        log.warning("%s", too_few)
    telemetry.configure(settings.worker_id)
    push = metric_push(settings.worker_id)
    try:
        return run_async(lambda: _serve(settings, key, push))
    except NoPermissionError as error:  # of a key of its own: one of a session's is refused
        raise BusUnavailableError(
            f"Redis does not let this worker work any more: {error}"
        ) from error
    finally:
        telemetry.shut_down()


async def _serve(settings: Settings, key: str, push: MetricPush | None) -> int:
    worker = Worker(settings, key)
    meter = WorkerGauges(worker)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    async with AsyncExitStack() as stack:
        if settings.admin is not None:
            await stack.enter_async_context(
                serve_admin(
                    settings.admin, lambda: worker.readiness, lambda: render(samples(meter))
                )
            )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_handle_signals, worker, settings, tasks)
            keep = worker.context.supervisor.run_forever
            tasks.start_soon(keep, "metrics", meter.follow_demand)
            if push is not None:
                tasks.start_soon(keep, "metrics", partial(push.run, meter))
            await worker.run()
            tasks.cancel_scope.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            # All is handed on. Who asks again while we leave still gets the exit code 0.
            signal.signal(number, signal.SIG_IGN)
    return 0


async def _handle_signals(worker: Worker, settings: Settings, tasks: TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            worker.stop()
            tasks.start_soon(_stop_hard, settings.drain_s + HARD_STOP_S, tasks)


async def _stop_hard(after_s: float, tasks: TaskGroup) -> None:
    await anyio.sleep(after_s)
    log.error("not stopped within the drain budget; leases hand on the rest")
    tasks.cancel_scope.cancel()
