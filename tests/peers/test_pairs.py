"""The bare relay passes all on; a report compares it, or two providers. Nothing is timed."""

from collections import defaultdict

import anyio
import msgspec
import pytest

from schemas import Event
from schemas.turns import SessionEnded, TurnEnd, TurnStart
from tests.peers import bare_relay
from tests.peers.__main__ import make_parser
from tests.peers.pairs import PairReport, table, text_of, warnings
from tests.unit.bench.test_report import report as load_report
from tests.unit.bench.test_report import run
from worker.bench.events import EventReader
from worker.bench.plan import LoadPlan
from worker.bench.producer import LoadProducer
from worker.bench.speech import Speech
from worker.bench.words import WordResult
from worker.cli.main import main
from worker.local.emulator.engines.script import words_of
from worker.local.harness import Harness

PLAN = LoadPlan(sessions=2, seconds=1, warmup=1)


async def test_relay_passes_on_all_chunks_and_events() -> None:
    events: defaultdict[str, list[Event]] = defaultdict(list)
    speech = Speech(PLAN)
    async with Harness.open() as harness:
        keys = harness.keys
        _, url = await harness.start_stt_server("script")
        relay = harness.worker("relay", {"STT_URL": url}, module=bare_relay.__name__)
        await harness.workers_ready(await harness.start(relay))
        producer = LoadProducer(harness.server.port, keys, PLAN, speech)
        await producer.run()
        reader = EventReader(
            harness.redis, [keys.turns("0")], lambda _, event: events[event.session].append(event)
        )
        with anyio.fail_after(30):
            while sum(isinstance(each[-1], SessionEnded) for each in events.values()) < 2:
                await reader.read()
                await anyio.sleep(0.02)
    for session in producer.sessions:
        got = events[session.name]
        assert [event.seq for event in got] == list(range(1, len(got) + 1))
        assert got[-1].audio_ms == len(session.appended_ms) * PLAN.chunk_ms
        ends = [event for event in got if isinstance(event, TurnEnd)]
        starts = [event for event in got if isinstance(event, TurnStart)]
        assert [event.turn for event in starts] == [event.turn for event in ends]
        words = [word for event in ends for word in words_of(event.transcript)]
        assert words == list(range(speech.words_in(session.speech_chunks)))


@pytest.mark.parametrize(
    ("option", "names"),
    [("--floor", ["turnbus", "bare relay"]), ("--providers", ["flux", "cartesia"])],
)
def test_pair_is_measured_in_turn(
    option: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--sessions", "3", "--seconds", "1", "--warmup", "1"]
    assert main([option, *size, "--json"], make_parser) == 0
    output = capsys.readouterr().out
    results = msgspec.json.decode(output)["results"]
    assert results["CPU us/chunk"].keys() >= {*names}
    report = msgspec.json.decode(output, type=PairReport)
    assert report.ok
    assert list(report.loads) == names
    if option == "--providers":
        assert [load.plan.provider for load in report.loads.values()] == names
    for load in report.loads.values():
        assert load.verdict.words >= 3 * 8
        assert load.runs[0].chunks_per_s > 15


def test_pairs_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--floor", "--providers"], make_parser) == 2
    assert capsys.readouterr().err == "turnbus: --floor and --providers: give one of them\n"


def test_pair_text_has_medians_ranges_and_errors() -> None:
    worker = load_report(run(0.2), run(0.3), run(0.4))
    relay = load_report(run(0.1), run(0.1), run(0.2, verdict=WordResult(words=10, lost=1)))
    got = PairReport(
        date="2026-01-01",
        machine=worker.machine,
        versions=worker.versions,
        loads={"turnbus": worker, "bare relay": relay},
    )
    cells = {row[0]: row[1:] for row in table(got)}
    assert cells["CPU us/chunk"] == [
        "300.0 (200.0 - 400.0)",
        "100.0 (100.0 - 200.0)",
        "2.00 (2.00 - 3.00)",
    ]
    assert cells["lost"] == ["0", "1", ""]
    assert not got.ok
    assert "100 ms chunks, 10 s after 5 s, 3 runs: median (min - max)" in text_of(got)
    assert warnings(got) == ["FAILED: bare relay did not pass on every word exactly once"]
