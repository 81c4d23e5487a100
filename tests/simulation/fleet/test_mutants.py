"""Every mutant removes its guard, and only until its block ends."""

import pytest

from tests.simulation.fleet.mutants import MUTANTS, switched_off
from worker.bus import scripts
from worker.core.ledger import Ledger
from worker.session.sender import AudioSender

WATCHED = (scripts.commit, scripts.claim)


def _texts() -> list[str]:
    return [script.text for script in WATCHED] + [script.sha for script in WATCHED]


@pytest.mark.parametrize("name", MUTANTS)
def test_guard_is_restored(name: str) -> None:
    before = _texts(), Ledger.admit, Ledger.state, AudioSender.send_filler
    with switched_off(name):
        pass
    assert (_texts(), Ledger.admit, Ledger.state, AudioSender.send_filler) == before


def test_script_without_a_guard_is_another_script() -> None:
    before = _texts()
    with switched_off("no-fence"):
        assert "fenced" not in scripts.commit.text.partition("local state =")[2]
        assert _texts()[2] != before[2]
