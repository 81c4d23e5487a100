"""The history accepts what one owner at a time does, and finds every other order of calls."""

from typing import Any

import msgspec
import pytest

from tests.simulation.fleet.history import History, ScriptRun
from worker.bus import scripts
from worker.core.records import LedgerState, Position
from worker.session.checkpoint import Checkpoint

KEYS = (b"stt:{0}:state:s", b"stt:{0}:turns", b"stt:{0}:turns:s", b"stt:{0}:audio:s")
DEFAULTS = {"session": b"s", "nonce": b"a", "entry_id": b"5-0", "delivery_count": b"1"}


def claim(verdict: str, seq: int = 1, **given: str) -> ScriptRun:
    values = DEFAULTS | {name: value.encode() for name, value in given.items()}
    args = [values.get(name, b"") for name in scripts.claim.args]
    return ScriptRun(0.0, "claim", KEYS, args, [verdict.encode(), seq, b"", b"5-0"])


def commit(
    verdict: str,
    seq: int,
    *,
    number: int,
    first: int,
    events: int = 1,
    position: int = 0,
    trim: str = "",
    ending: str = "",
    **given: str,
) -> ScriptRun:
    ledger = LedgerState(committed=Position("7-0"), committed_bytes=position)
    values = DEFAULTS | {name: value.encode() for name, value in given.items()}
    values |= {
        "commit_number": str(number).encode(),
        "first_seq": str(first).encode(),
        "snapshot": msgspec.json.encode(Checkpoint(ledger=ledger)),
        "trim_before": trim.encode(),
        "ending": ending.encode(),
    }
    args = [values.get(name, b"") for name in scripts.commit.args]
    args += [b"turn.start", b"{}", b""] * events
    return ScriptRun(0.0, "commit", KEYS, args, [verdict.encode(), seq])


def rules(*runs: ScriptRun) -> list[str]:
    history = History()
    for run in runs:
        history.add(run)
    return [found.rule for found in history.findings]


LATER: dict[str, Any] = {"nonce": "b", "delivery_count": "2"}


def test_one_owner_after_another_is_accepted() -> None:
    assert not rules(
        claim("new"),
        claim("taken", 1),  # the reply was lost
        commit("ok", 2, number=1, first=2, position=100),
        commit("ok", 2, number=1, first=2, position=100),  # the same bytes again
        claim("taken", 2, **LATER),
        commit("fenced", 2, number=2, first=3, position=200),
        commit("ok", 3, number=1, first=3, position=150, trim="7-0", **LATER),
        claim("taken", 3, entry_id="6-0", nonce="c"),  # the entry was restored
        commit("ok", 4, number=1, first=4, position=150, ending="end", entry_id="6-0", nonce="c"),
        commit("ok", 4, number=1, first=4, position=150, ending="end", entry_id="6-0", nonce="c"),
        claim("over", 0, entry_id="6-0", **LATER),
    )


def test_late_attempt_of_an_older_commit_is_accepted() -> None:
    assert not rules(
        claim("new"),
        commit("ok", 2, number=1, first=2, position=100),
        commit("ok", 3, number=2, first=3, position=200),
        commit("ok", 3, number=1, first=2, position=100),
    )


@pytest.mark.parametrize(("stored", "found"), [(2, []), (1, ["position"])])
def test_late_attempt_must_not_replace_a_later_commit(stored: int, found: list[str]) -> None:
    history = History(lambda key: stored)
    history.add(claim("new"))
    history.add(commit("ok", 2, number=1, first=2, position=100))
    history.add(commit("ok", 3, number=2, first=3, position=200))
    history.add(commit("ok", 3, number=1, first=2, position=100))
    assert [each.rule for each in history.findings] == found
    assert history.late_commits == 1


def test_rolled_back_history_begins_anew() -> None:
    history = History()
    history.add(claim("new"))
    history.add(commit("ok", 2, number=1, first=2, position=100))
    history.rolled_back()
    history.add(commit("ok", 2, number=2, first=2, position=50))
    assert history.findings == []


@pytest.mark.parametrize(
    ("runs", "rule"),
    [
        ([claim("new"), claim("new", **LATER)], "owner"),
        ([claim("new"), claim("taken", 1, nonce="b")], "fence"),
        ([claim("new", delivery_count="3"), claim("taken", 1, **LATER)], "fence"),
        ([claim("new"), claim("taken", 2, **LATER)], "seq"),
        ([claim("new"), commit("ok", 2, number=1, first=2, **LATER)], "owner"),
        (
            [
                claim("new"),
                claim("taken", 1, **LATER),
                commit("ok", 2, number=1, first=2),
            ],
            "owner",
        ),
        ([claim("new"), commit("gap", 1, number=1, first=3)], "seq"),
        ([claim("new"), commit("ok", 3, number=1, first=2)], "seq"),
        (
            [
                claim("new"),
                commit("ok", 2, number=1, first=2),
                commit("ok", 1, number=2, first=1, events=0),
            ],
            "seq",
        ),
        (
            [
                claim("new"),
                commit("ok", 2, number=1, first=2, position=100),
                commit("ok", 3, number=2, first=3, position=90),
            ],
            "position",
        ),
        ([claim("new"), commit("ok", 2, number=1, first=2, trim="8-0")], "position"),
        (
            [
                claim("new"),
                commit("ok", 2, number=1, first=2, ending="end"),
                claim("taken", 2, **LATER),
            ],
            "end",
        ),
    ],
)
def test_violating_history_is_found(runs: list[ScriptRun], rule: str) -> None:
    assert rules(*runs) == [rule]
