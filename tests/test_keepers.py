"""A fault of ours in any part of a worker: it goes on, and says what struck."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from redis.exceptions import NoPermissionError

from schemas.keys import Keys
from tests.collector import collecting
from tests.stage import KEY, PCM16, Stage, check_order, words
from tests.waiting import PATIENCE_S, eventually
from worker import service
from worker.bus import commits, sweeper
from worker.bus.clock import BusClock
from worker.bus.gate import Gate
from worker.bus.intake import Intake
from worker.bus.liveness import Liveness
from worker.bus.lost import LostSessions
from worker.bus.reader import AudioReader
from worker.bus.sweeper import Sweeper
from worker.catchup import CatchUp
from worker.claims import Claimer
from worker.commands import run
from worker.errors import BusUnavailable
from worker.keepers import Faults
from worker.local.engines.script import hush, say
from worker.overload import Overload
from worker.roster import Roster
from worker.telemetry.otlp import MetricPush, metric_push

PLACES = [
    ("arrivals", Intake, "read_new"),
    ("catch_up", CatchUp, "_goes_on"),
    ("claim", Claimer, "take"),
    ("clock", BusClock, "ask"),
    ("committer", commits._Outbox, "_send_some"),
    ("gate", Gate, "run"),
    ("lanes", Intake, "list_lane"),
    ("liveness", Liveness, "_read_records"),
    ("orders", service, "until_drain"),
    ("reader", AudioReader, "_round"),
    ("record", Intake, "register"),
    ("restore", LostSessions, "restore"),
    ("sweeper", Sweeper, "sweep_consumers"),
    ("tenure", Intake, "heartbeat"),
    ("ticker", Overload, "observe"),
    ("undertaker", Intake, "bury"),
    ("handover", Roster, "give_back_held"),
]
"""What is made to raise once, and in which part of the worker that is."""


def _choke_once(sound: Callable[..., Any]) -> Callable[..., Any]:
    struck: list[None] = []

    def choke(*arguments: Any, **options: Any) -> Any:
        if not struck:
            struck.append(None)
            raise ZeroDivisionError("a fault put in by the test")
        return sound(*arguments, **options)

    return choke


async def test_a_fault_in_each_part_ends_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweeper, "LOOK_S", 0.05)
    for _, owner, name in PLACES:
        monkeypatch.setattr(owner, name, _choke_once(getattr(owner, name)))
    sound = say([1, 2], PCM16) + hush(900, PCM16) + say([3], PCM16)
    await stage.redis.zadd(Keys(stage.prefix).lost, {"1-1": 1})
    async with stage.worker(stt_max_connections=9) as worker:
        await stage.announce_as({"session": "bad", "encoding": "mp3", "sample_rate": "8000"})
        await stage.announce("call-1")
        await stage.play("call-1", sound, pause_s=0)
        events = (await stage.until_ended("call-1", "bad"))["call-1"]
        faults = worker.host.stats.faults
        await eventually(lambda: all(faults[part] for part, _, _ in PLACES[:-1]), "each fault")
    check_order(events)
    assert words(events) == [1, 2, 3]
    told = [record.message for record in caplog.records if record.exc_info]
    assert len(told) == len(PLACES)
    assert worker.host.stats.faults == Counter({part: 1 for part, _, _ in PLACES})
    assert any(line.endswith("not kept: a fault of turnbus") for line in caplog.messages)


async def test_a_fault_in_the_telling_of_metrics_ends_no_worker(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_leftovers: list[str],
) -> None:
    expected_leftovers.append("workers")  # it is cut off at the end
    monkeypatch.setattr(MetricPush, "_export", _choke_once(MetricPush._export))
    env = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        push = metric_push("one", env)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run._serve, stage.settings(), KEY, push)
            await stage.announce("call-1")
            await stage.play("call-1", say([1], PCM16), pause_s=0)
            events = (await stage.until_ended("call-1"))["call-1"]
            with anyio.fail_after(PATIENCE_S):
                while not collector.metrics:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert words(events) == [1]
    assert any(line.startswith("metrics: a fault of ours") for line in caplog.messages)


@pytest.mark.parametrize(
    "fault", [NoPermissionError("this user has no permissions"), BusUnavailable("no")]
)
async def test_what_an_operator_must_mend_is_not_survived(fault: Exception) -> None:
    faults = Faults(Counter())

    async def work() -> None:
        raise fault

    with pytest.raises(type(fault)):
        await faults.keep("arrivals", work)
    with pytest.raises(ExceptionGroup), faults.contained("arrivals"):
        raise ExceptionGroup("of a task group", [ZeroDivisionError(), fault])
