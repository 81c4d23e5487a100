"""An internal error in any part of a worker: the worker goes on and logs the error."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from redis.exceptions import NoPermissionError

from schemas.keys import Keys
from tests.support.collector import collecting
from tests.support.harness import PCM16, Harness, check_order, keys_of, words
from tests.support.polling import PATIENCE_S, eventually
from worker import worker
from worker.bus import cleanup, committer
from worker.bus.audio_reader import AudioReader
from worker.bus.cleanup import Cleaner
from worker.bus.clock import RedisClock
from worker.bus.dead_letters import DeadLetterWriter
from worker.bus.liveness import Liveness
from worker.bus.lost_entries import OrphanRecovery
from worker.bus.ownership import SessionLeases
from worker.bus.permits import ConnectionPermits
from worker.bus.registry import WorkerRegistry
from worker.cli import run
from worker.errors import BusUnavailableError
from worker.event_loop import OverloadDetector
from worker.leases.claim import Claimer
from worker.leases.running import RunningSessions
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.session.backlog import BacklogDrainer
from worker.supervisor import Supervisor
from worker.telemetry.otlp import MetricPush, metric_push

PLACES = [
    ("acquire", SessionLeases, "read_new"),
    ("backlog", BacklogDrainer, "_step"),
    ("claim", Claimer, "open_session"),
    ("clock", RedisClock, "sync"),
    ("committer", committer._CommitBatcher, "_send_batch"),
    ("dead_letters", DeadLetterWriter, "_write"),
    ("drain_requests", worker, "wait_for_drain"),
    ("gate", ConnectionPermits, "run"),
    ("heartbeat", SessionLeases, "heartbeat"),
    ("lanes", WorkerRegistry, "list_lanes"),
    ("liveness", Liveness, "_read_records"),
    ("reader", AudioReader, "_read_lanes"),
    ("recovery", OrphanRecovery, "recover_known"),
    ("sweeper", Cleaner, "sweep_consumers"),
    ("ticker", OverloadDetector, "observe"),
    ("worker_record", WorkerRegistry, "register"),
    ("handover", RunningSessions, "release_waiting"),
]
"""Function that raises once, and the part of the worker it belongs to."""


def _fail_once(original: Callable[..., Any]) -> Callable[..., Any]:
    raised: list[None] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        if not raised:
            raised.append(None)
            raise ZeroDivisionError("a fault put in by the test")
        return original(*arguments, **options)

    return fail


async def test_internal_error_in_each_part_ends_no_worker(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cleanup, "CONSUMER_INTERVAL_S", 0.05)
    for _, owner, name in PLACES:
        monkeypatch.setattr(owner, name, _fail_once(getattr(owner, name)))
    original = (
        synthesize_words([1, 2], PCM16)
        + synthesize_silence(900, PCM16)
        + synthesize_words([3], PCM16)
    )
    await harness.redis.zadd(Keys(harness.prefix).lost, {"1-1": 1})
    async with harness.worker(stt_max_connections=9) as worker:
        await harness.announce_as({"session": "bad", "encoding": "mp3", "sample_rate": "8000"})
        await harness.announce("call-1")
        await harness.play("call-1", original, pause_s=0)
        events = (await harness.until_ended("call-1", "bad"))["call-1"]
        faults = worker.context.stats.internal_errors
        await eventually(
            lambda: all(faults[part] for part, _, _ in PLACES[:-1]), "each internal error"
        )
    check_order(events)
    assert words(events) == [1, 2, 3]
    logged = [record.message for record in caplog.records if record.exc_info]
    assert len(logged) == len(PLACES)
    assert worker.context.stats.internal_errors == Counter({part: 1 for part, _, _ in PLACES})
    assert any(line.endswith("not kept: internal error") for line in caplog.messages)


async def test_internal_error_in_metrics_ends_no_worker(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_leftovers: list[str],
) -> None:
    expected_leftovers.append("workers")  # the response is cut off at the end
    monkeypatch.setattr(MetricPush, "_export", _fail_once(MetricPush._export))
    env = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        push = metric_push("one", env)
        async with anyio.create_task_group() as tasks:
            settings = harness.settings()
            tasks.start_soon(run._serve, settings, keys_of(settings), push)
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
            events = (await harness.until_ended("call-1"))["call-1"]
            with anyio.fail_after(PATIENCE_S):
                while not collector.metrics:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert words(events) == [1]
    assert any(line.startswith("metrics: internal error") for line in caplog.messages)


@pytest.mark.parametrize(
    "fault", [NoPermissionError("this user has no permissions"), BusUnavailableError("no")]
)
async def test_errors_an_operator_must_fix_end_the_worker(fault: Exception) -> None:
    faults = Supervisor(Counter())

    async def work() -> None:
        raise fault

    with pytest.raises(type(fault)):
        await faults.run_forever("acquire", work)
    with pytest.raises(ExceptionGroup), faults.isolate("acquire"):
        raise ExceptionGroup("of a task group", [ZeroDivisionError(), fault])
