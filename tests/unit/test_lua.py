"""The Lua scripts and their Python signatures name the same values in the same order."""

import re
from pathlib import Path
from typing import Any

import pytest

from schemas.keys import Keys
from worker.bus import scripts
from worker.bus.scripts import Script

LUA = Path(scripts.__file__).parent / "lua"
SCRIPTS = [each for each in vars(scripts).values() if isinstance(each, Script)]
VALUE = re.compile(r"local (\w+) = (?:tonumber\()?(KEYS|ARGV)\[(\d+)\]\)?(?:  -- .*)?")
REST = re.compile(r"local (\w+)_at = (\d+)  -- .*")


def test_each_script_has_a_signature() -> None:
    assert {path.stem for path in LUA.glob("*.lua")} == {each.name for each in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_lua_header_matches_the_signature(script: Script[Any, Any]) -> None:
    head, _, body = script.text.partition("\n\n")
    lines = head.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("local "))
    assert any(line.startswith("-- Returns ") for line in lines[:first])
    named: dict[str, list[str]] = {"KEYS": [], "ARGV": []}
    rest = None
    for line in lines[first:]:
        if value := VALUE.fullmatch(line):
            name, source, position = value.groups()
            named[source].append(name)
            assert int(position) == len(named[source]), line
        else:
            found = REST.fullmatch(line)
            assert found, line
            rest = found[1]
            assert int(found[2]) == len(named["ARGV"]) + 1, line
    assert named == {"KEYS": [*script.keys], "ARGV": [*script.args]}
    assert rest == script.rest
    assert "KEYS" not in body
    assert not re.search(r"ARGV\[\d", body)


def test_values_are_sent_in_the_order_of_the_script() -> None:
    call = scripts.heartbeat.call(
        running=["5-0", 1], consumer="c", group="g", lost_key="lost", sessions_key="sessions"
    )
    assert call == (scripts.heartbeat.sha, 2, "sessions", "lost", "g", "c", "5-0", 1)


def test_session_commits_equal_calls_by_name() -> None:
    constant = {
        **Keys().of_session("0", "s"),
        "entry_id": "5-0",
        "delivery_count": 2,
        "nonce": "nonce",
        "session": "s",
        "out": "lane",
        "retention_s": 60,
        "turns_retention_ms": 1_000,
        "max_turns": 10,
    }
    changing = {
        "commit_number": 3,
        "first_seq": 4,
        "ending": "end",
        "snapshot": b"{}",
        "trim_before": "6-0",
        "events": ["turn.start", b"event", ""],
    }
    commits = scripts.SessionCommits(**constant)  # type: ignore[arg-type]
    named: Any = constant | changing
    assert commits.call(**changing) == scripts.commit.call(**named)  # type: ignore[arg-type]
    assert commits.beginning == scripts.commit.call(**named)[: len(commits.beginning)]
