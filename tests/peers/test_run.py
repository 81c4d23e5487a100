"""`python -m tests.peers`, small: its processes, its environments, itself. Nothing is timed."""

import os
import sys
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from tests.peers.__main__ import make_parser
from tests.peers.environment import PUBLISHED, Environment, NotInstalled, cache
from tests.peers.process import ClientSession, Done, Mark, Outcome, PeerFailed, PeerProcess
from tests.peers.run import ClientRun, verdict_of
from worker.bench.plan import LoadPlan
from worker.bench.speech import Speech
from worker.cli.main import main

BARE = Path(__file__).parents[1] / "contract" / "bare_client.py"
PLAN = LoadPlan(sessions=3, seconds=1, warmup=1)


@pytest.fixture(autouse=True)
def repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the root of the repository, where the bare client finds the packages."""
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A Python that has turnbus on its path although it is run without its environment."""
    python = tmp_path / "python"
    root = Path(__file__).parents[2]
    python.write_text(f'#!/bin/sh\nshift 2\nPYTHONPATH="{root}" exec "{sys.executable}" -s "$@"\n')
    python.chmod(0o700)
    return python


async def test_client_run_measures_cost_and_words(wrapped: Path) -> None:
    cost = await ClientRun(PLAN, Speech(PLAN), cores=os.cpu_count() or 1).run(wrapped, BARE)
    assert cost.verdict.words >= 3 * 8
    # It keeps the turns with w3 to itself: eight words of each session.
    assert (cost.verdict.lost, cost.verdict.repeated, cost.verdict.wrong) == (3 * 8, 0, 0)
    assert cost.verdict.unended == 0
    assert cost.cpu_us_per_chunk >= 0
    assert cost.mib > 1


async def test_stopped_client_reports_its_log(tmp_path: Path) -> None:
    program = tmp_path / "client.py"
    program.write_text("raise SystemExit('no key')\n")
    with pytest.raises(PeerFailed, match=r"stopped by itself; it last wrote: no key"):
        await ClientRun(PLAN, Speech(PLAN), cores=1).run(Path(sys.executable), program)


async def test_invalid_client_answer_is_rejected(tmp_path: Path) -> None:
    program, log = tmp_path / "client.py", tmp_path / "log"
    program.write_text('print(\'{"done": "ready"}\', flush=True)\nprint(input())\ninput()\n')
    async with PeerProcess.start(Path(sys.executable), program, tmp_path, log) as process:
        assert await process.answer(Done) == Done(done="ready")
        with pytest.raises(PeerFailed, match=r"it answered b'mark'"):
            await process.ask("mark", Mark)
        left = psutil.Process(process.pid)
    with anyio.fail_after(30):
        while left.is_running() and left.status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.01)


def test_verdict_compares_received_and_sent_words() -> None:
    speech = Speech(PLAN)
    said = ClientSession(spoken=PLAN.cycle, turns=("w0 w1 w1", " w2 w3 w4 !5 w6"))
    verdict = verdict_of(Outcome(sessions=(said,), late=0, missing=1), speech)
    assert (verdict.words, verdict.lost, verdict.repeated, verdict.wrong) == (8, 2, 1, 1)
    assert verdict.unended == 1


async def test_failed_install_is_reported(tmp_path: Path) -> None:
    environment = Environment("no requirement at all", home=tmp_path)
    assert not environment.installed
    with pytest.raises(NotInstalled):
        await environment.install()
    assert not environment.installed


def test_environments_have_separate_directories(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    homes = {peer.environment.home for peer in PUBLISHED}
    assert len(homes) == len(PUBLISHED)
    assert {home.parent for home in homes} == {tmp_path / "turnbus" / "peers"} == {cache()}
    assert all(peer.program.is_file() for peer in PUBLISHED)


@pytest.mark.slow
def test_all_published_clients_transcribe_all_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = ["--sessions", "3", "--seconds", "2", "--warmup", "1"]
    assert main([*size, "--json"], make_parser) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert [row["failure"] for row in report["rows"]] == [""] * (1 + len(PUBLISHED))
    for row in report["rows"]:
        (cost,) = row["costs"]
        assert cost["verdict"]["words"] >= 3 * 8
        assert not any(n for name, n in cost["verdict"].items() if name != "words"), row["name"]
