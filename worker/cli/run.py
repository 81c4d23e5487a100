"""`turnbus run`: the worker."""

import gc
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import anyio
from anyio.abc import TaskGroup
from redis.exceptions import NoPermissionError

from worker import descriptors, telemetry
from worker.admin import serve_admin
from worker.cli.command import Command, Config, run_async
from worker.errors import BusUnavailableError
from worker.settings import Settings, check_worker_id, load
from worker.stt.keys import ApiKey, load_keys
from worker.telemetry import logs
from worker.telemetry.metrics import WorkerGauges, samples
from worker.telemetry.otlp import MetricPush, metric_push
from worker.worker import Worker

log = logging.getLogger(__name__)

HARD_STOP_S = 6.0
"""Timeout after the drain timeout, when the process stops anyway and leases expire. It is ten
seconds less the maximum time of the last exports of metrics and spans."""

GC_THRESHOLDS = (20_000, 20, 20)
"""Thresholds of Python's cycle collector. It runs seldom: sessions leave no cycles, and a thousand
of them are a million objects to traverse."""


class Run(Command):
    """Run a worker: take sessions, transcribe their audio, publish their turns.

    SIGTERM releases every session and exits; a second one does so at once.

    examples:
      CARTESIA_API_KEY=... turnbus run
      turnbus run --config turnbus.toml
    """

    config: Config = None

    def run(self) -> int:
        """Run until a signal arrives."""
        settings = load(os.environ, self.config)
        check_worker_id(settings)
        keys = load_keys(settings, os.environ)
        logs.set_up(settings)
        keys.log_skipped()
        limit = descriptors.raise_limit(settings)
        if too_few := descriptors.shortfall(settings, limit):
            log.warning("%s", too_few)
        telemetry.configure(settings.worker_id)
        push = metric_push(settings.worker_id)
        try:
            return run_async(partial(_serve, settings, keys.usable, push))
        except NoPermissionError as error:  # on the worker's own keys, not on a session's
            raise BusUnavailableError(
                f"the Redis user lost a required permission: {error}"
            ) from error
        finally:
            telemetry.shut_down()


async def _serve(settings: Settings, keys: Mapping[str, ApiKey], push: MetricPush | None) -> int:
    worker = Worker(settings, keys)
    meter = WorkerGauges(worker)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    async with AsyncExitStack() as stack:
        if settings.admin is not None:
            await stack.enter_async_context(
                serve_admin(settings.admin, lambda: worker.readiness, partial(_metrics, meter))
            )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_handle_signals, worker, settings, tasks)
            run_forever = worker.context.supervisor.run_forever
            tasks.start_soon(run_forever, "metrics", meter.follow_demand)
            if push is not None:
                tasks.start_soon(run_forever, "metrics", partial(push.run, meter))
            await worker.run()
            tasks.cancel_scope.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            # All sessions are released. Another signal during the exit must not change the code 0.
            signal.signal(number, signal.SIG_IGN)
    return 0


def _metrics(meter: WorkerGauges) -> bytes:
    """Return the metrics as Prometheus text.

    The first scrape imports the Prometheus client: it takes 15 ms, which a start does not wait for.
    """
    from worker.telemetry.prometheus import render

    return render(samples(meter))


async def _handle_signals(worker: Worker, settings: Settings, tasks: TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            worker.stop()
            tasks.start_soon(_stop_hard, settings.drain_s + HARD_STOP_S, tasks)


async def _stop_hard(after_s: float, tasks: TaskGroup) -> None:
    await anyio.sleep(after_s)
    log.error("not stopped within the drain timeout; the leases of the other sessions expire")
    tasks.cancel_scope.cancel()
