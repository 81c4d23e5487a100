"""A worker of an earlier version and a worker of this one take sessions over from each other."""

import signal
import subprocess
from pathlib import Path

import anyio
import pytest

from schemas.turns import TurnUpdate
from tests.support.harness import PCM16, Harness, check_order, words
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

EARLIER = "97912a78c6"
"""Last commit before modules, classes and fields were renamed."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command that runs its arguments on the earlier version's code."""
    tree = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(
        ["git", "archive", EARLIER, "worker", "schemas"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"the history of this clone does not reach back to {EARLIER}")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    newer = "TURNBUS_STT_FLUX_URL"  # a setting that the earlier version does not know
    return ["env", "-u", newer, "-C", str(tree), f"PYTHONPATH={tree}"]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("order", ["earlier first", "earlier last"])
async def test_versions_hand_sessions_to_each_other(
    harness: Harness, tmp_path: Path, earlier: list[str], order: str, end: signal.Signals
) -> None:
    under = [earlier, []] if order == "earlier first" else [[], earlier]
    spoken = synthesize_words(list(range(20)), PCM16) + synthesize_silence(1_500, PCM16)
    logs = [tmp_path / "first", tmp_path / "second"]
    async with (
        harness.worker_process("first", logs[0], under=under[0], drain_s="0") as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", spoken)
        await harness.until("call-1", TurnUpdate, 6)
        first.send_signal(end)
        async with harness.worker_process("second", logs[1], under=under[1]):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(20))
    assert {event.connection for event in events[1:]} == {1, 2}
