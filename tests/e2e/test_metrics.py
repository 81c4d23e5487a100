"""Metrics of a working worker, read over real HTTP."""

import logging
import re
from urllib.request import urlopen

import anyio
import anyio.to_thread
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from schemas.turns import TurnEnd, TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.harness import PCM16, Harness, keys_of, words
from tests.support.polling import eventually, no_longer
from worker import build
from worker.admin import serve_admin
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.telemetry.metrics import INSTRUMENTS, WorkerGauges, samples
from worker.telemetry.prometheus import labels, prometheus_name, render
from worker.worker import Worker


async def _scrape(meter: WorkerGauges) -> dict[str, Metric]:
    """Read a worker's metrics as Prometheus does."""

    def get() -> tuple[str, str]:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    async with serve_admin(
        ("127.0.0.1", 0), lambda: meter.worker.readiness, lambda: render(samples(meter))
    ) as port:
        content_type, text = await anyio.to_thread.run_sync(get)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(text)}


def _value(families: dict[str, Metric], series: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == series and labels.items() <= sample.labels.items()
    ]
    assert found, series
    return sum(found)


async def test_session_is_measured(harness: Harness) -> None:
    sound = synthesize_words([1, 2], PCM16) + synthesize_silence(1_000, PCM16)
    async with harness.worker(max_sessions=7) as worker, anyio.create_task_group() as tasks:
        meter = WorkerGauges(worker)
        await harness.announce("s")
        tasks.start_soon(meter.follow_demand)
        await harness.play("s", sound, end=False)
        await harness.until("s", TurnEnd)
        await eventually(lambda: meter.demand, "the demand to be known")
        before = await _scrape(meter)
        await harness.append("s", end="1")
        (events,) = (await harness.until_ended("s")).values()
        await no_longer(lambda: len(worker.running), "the session")
        after = await _scrape(meter)
        tasks.cancel_scope.cancel()
    assert _value(before, "turnbus_sessions") == 1
    assert _value(before, "turnbus_sessions", turnbus_session_phase="live") == 1
    assert _value(before, "turnbus_demand") == 1
    assert _value(after, "turnbus_sessions") == 0
    assert _value(after, "turnbus_sessions_limit") == 7
    assert _value(after, "turnbus_workers_ready") == 1
    assert _value(after, "turnbus_chunks_total") == len(sound) // 3_200 + (len(sound) % 3_200 > 0)
    assert _value(after, "turnbus_audio_sent_bytes_total") >= len(sound)
    assert _value(after, "turnbus_connects_total", turnbus_connect_outcome="ok") == 1
    assert _value(after, "turnbus_connect_duration_seconds_count") == 1
    assert _value(after, "turnbus_events_total") == len(events)
    assert _value(after, "turnbus_events_total", turnbus_event_type="turn.end") == 1
    # The session's first event is written with the claim.
    assert _value(after, "turnbus_commit_duration_seconds_count") == len(events) - 1
    assert _value(after, "turnbus_commits_total", turnbus_commit_verdict="fenced") == 0
    assert _value(after, "turnbus_commits_total", turnbus_commit_verdict="ok") > 1
    assert _value(after, "turnbus_chunk_lag_seconds_count") > 0
    assert _value(after, "turnbus_turn_latency_seconds_count") == 1
    # The script engine needs 300 ms of silence and has a latency of 150 ms.
    assert _value(after, "turnbus_turn_latency_seconds_sum") > 0.3
    assert _value(after, "turnbus_loop_delay_seconds_count") > 0
    assert _value(after, "turnbus_redis_outage_seconds") == 0
    assert _value(after, "process_cpu_time_seconds_total") > 0


async def test_lost_socket_is_counted(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("http=503,count=1", "cut@mid-turn,count=1")
    async with harness.worker() as worker:
        await harness.announce("s")
        await harness.play("s", synthesize_words([1, 2, 3], PCM16), pause_s=0.02)
        await harness.until_ended("s")
        families = await _scrape(WorkerGauges(worker))
    outcome = "turnbus_connect_outcome"
    assert _value(families, "turnbus_connects_total", **{outcome: "transient"}) == 1
    assert _value(families, "turnbus_connects_total", **{outcome: "ok"}) == 2
    assert _value(families, "turnbus_reconnects_total", turnbus_fault_class="transient") == 1
    assert _value(families, "turnbus_audio_replayed_seconds_total") > 0


async def test_repeated_chunks_are_counted_and_logged_once(
    harness: Harness, stt: TurnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """This also holds when the entries are read again after a lost socket."""
    caplog.set_level(logging.INFO)
    stt.faults.set("cut@mid-turn,count=1")
    sound = synthesize_words([1, 2, 3], PCM16)
    chunks = [sound[at : at + 3_200] for at in range(0, len(sound), 3_200)]
    async with harness.worker() as worker:
        await harness.announce("s")
        for seq, chunk in enumerate(chunks):
            for _ in range(2):
                await harness.append("s", audio=chunk, seq=str(seq), src="p")
            await anyio.sleep(0.02)
        await harness.append("s", end="1")
        events = (await harness.until_ended("s"))["s"]
        families = await _scrape(WorkerGauges(worker))
    assert words(events) == [1, 2, 3]
    assert _value(families, "turnbus_reconnects_total") == 1
    assert _value(families, "turnbus_chunks_repeated_total") == len(chunks)
    (message,) = (line for line in caplog.messages if "needs another src" in line)
    assert message.startswith("s: audio entry ")
    assert "repeats seq 0 of src 'p'" in message


async def test_gaps_and_rejections_are_counted_by_reason(harness: Harness) -> None:
    async with harness.worker() as worker:
        await harness.announce_as({"session": "no good", "encoding": "mp3"})
        await harness.announce("s")
        await harness.append("s", audio=bytes(3_200), seq="1")
        await harness.append("s", audio=bytes(3_200), seq="4")
        await harness.append("s", end="1")
        await harness.until_ended("s")
        await eventually(lambda: worker.context.stats.rejected_entries, "the rejection")
        families = await _scrape(WorkerGauges(worker))
    assert _value(families, "turnbus_gaps_total", turnbus_gap_reason="producer") == 1
    missing = _value(families, "turnbus_audio_missing_seconds_total", turnbus_gap_reason="producer")
    assert missing == pytest.approx(0.2)
    assert _value(families, "turnbus_gaps_total", turnbus_gap_reason="backlog") == 0
    assert _value(families, "turnbus_refused_total") == 1


async def test_release_is_counted_once(harness: Harness) -> None:
    async with harness.worker(lease_ms=600_000) as first:
        await harness.announce("s")
        await harness.play(
            "s",
            synthesize_words([1], PCM16) + synthesize_silence(1_000, PCM16),
            pause_s=0.02,
            end=False,
        )
        async with harness.worker(lease_ms=600_000) as second:
            first.stop()
            await eventually(lambda: len(second.running), "the session at the second worker")
            await harness.append("s", end="1")
            await harness.until_ended("s")
            families = await _scrape(WorkerGauges(second))
    assert _value(families, "turnbus_takeovers_total", turnbus_takeover_cause="released") == 1
    assert _value(families, "turnbus_takeovers_total") == 1


async def test_metrics_text_has_every_metric_of_the_table(harness: Harness) -> None:
    async with harness.worker() as worker, anyio.create_task_group() as tasks:
        meter = WorkerGauges(worker)
        tasks.start_soon(meter.follow_demand)
        await eventually(lambda: meter.demand is not None, "the demand to be known")
        families = await _scrape(meter)
        tasks.cancel_scope.cancel()
    expected = {prometheus_name(each).removesuffix("_total"): each for each in INSTRUMENTS}
    assert families.keys() == expected.keys()
    types = {"counter": "counter", "histogram": "histogram"}
    for name, family in families.items():
        instrument = expected[name]
        assert family.type == types.get(instrument.kind, "gauge"), name
        assert family.documentation == instrument.description
        found = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert found <= {*labels(instrument)}, name
    (info,) = families["turnbus_build_info"].samples
    assert (info.labels, info.value) == (build.describe(), 1)


async def test_demand_is_not_reported_during_a_redis_outage(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(append_only=True) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker() as worker,
        anyio.create_task_group() as tasks,
    ):
        meter = WorkerGauges(worker)
        assert "turnbus_demand" not in await _scrape(meter)
        tasks.start_soon(meter.follow_demand)
        await eventually(lambda: meter.demand is not None, "the demand to be known")
        await server.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        families = await _scrape(meter)
        assert "turnbus_demand" not in families
        assert _value(families, "turnbus_redis_outage_seconds") >= 0
        tasks.cancel_scope.cancel()


async def test_demand_that_cannot_be_read_is_not_reported(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.redis.set(f"{harness.prefix}:sessions", "not turnbus's")
    settings = harness.settings()
    worker = Worker(settings, keys_of(settings))
    async with worker.redis:
        meter = WorkerGauges(worker)
        await meter.follow_demand()
    assert meter.demand is None
    assert "is no longer measured" in caplog.text


def test_names_and_units_follow_opentelemetry_rules() -> None:
    names = [instrument.name for instrument in INSTRUMENTS]
    assert len(set(names)) == len(names)
    for instrument in INSTRUMENTS:
        assert re.fullmatch(r"[a-z]+(\.[a-z]+)+", instrument.name)
        assert re.fullmatch(r"s|By|\{[a-z]+\}", instrument.unit), instrument.name
        assert not instrument.name.endswith((".total", ".count", ".seconds", ".bytes"))
        assert not instrument.description.endswith(".")
        assert instrument.kind != "histogram" or instrument.unit == "s"


async def test_audio_that_waited_for_a_socket_is_not_counted_late(
    harness: Harness, stt: TurnsServer
) -> None:
    afterwards = synthesize_words([8], PCM16) + synthesize_silence(1_000, PCM16)
    async with harness.worker(replay_speed=20.0) as worker:
        async with stt.outage("503"):
            await harness.announce("s")
            await harness.play("s", synthesize_words(range(8), PCM16), end=False)
        await harness.until("s", TurnUpdate)
        await harness.play("s", afterwards)
        await harness.until_ended("s")
        lag = worker.context.stats.chunk_lag
    assert 0 < lag.count <= len(afterwards) // 3_200
