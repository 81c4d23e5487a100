"""The tables of the documentation match the code."""

import re
import tomllib
from contextlib import redirect_stdout
from io import StringIO
from typing import Literal, get_args, get_origin

import msgspec
import pytest
import yaml

from schemas.audio import AudioEntry, SessionEntry, TurnConfig
from schemas.keys import Keys
from schemas.turns import (
    DeadLetter,
    Event,
    EventBase,
    GapReason,
    SessionEndReason,
    TurnEnd,
    TurnEndReason,
)
from schemas.validation import REASONS, describe_type
from tests.docs.metrics import BLOCK, tables
from tests.docs.pages import ROOT, block, column, read, section
from worker.cli.main import _COMMANDS, main
from worker.ingest.settings import IngestSettings
from worker.local.emulator.engines.base import TurnSettings
from worker.settings import Settings

_SETTINGS = pytest.mark.parametrize(
    ("title", "kind"), [("Settings", Settings), ("Gateway settings", IngestSettings)]
)


@_SETTINGS
def test_settings_are_listed(title: str, kind: type[Settings | IngestSettings]) -> None:
    text = section("configuration.md", title)
    listed = set(re.findall(r"`TURNBUS_(\w+)`", text))
    listed |= {f"STT_{name}" for name in re.findall(r"`\.\.\._(TURN_\w+)`", text)}
    assert listed == {name.upper() for name in kind.__struct_fields__}


@_SETTINGS
def test_setting_defaults_match(title: str, kind: type[Settings | IngestSettings]) -> None:
    text = section("configuration.md", title)
    rows = re.findall(r"^\| `TURNBUS_(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    defaults = msgspec.structs.asdict(kind())
    assert len(rows) > 5
    for name, default in rows:
        value = defaults[name.lower()]
        if isinstance(value, bool):
            value = str(value).lower()
        assert default == (f"{value:g}" if isinstance(value, float) else str(value)), name


def _range(kind: object) -> str:
    """Format a type's range as the tables do; empty for a type that is no number and no choice."""
    if number := re.match(r"a (?:whole )?number from (\S+ to \S+)", describe_type(kind)):
        return re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", number[1])
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if kind is bool:
        choices = ("true", "false")
    return " ".join(f"`{choice}`" for choice in choices)


@_SETTINGS
def test_setting_ranges_match(title: str, kind: type[Settings | IngestSettings]) -> None:
    row = r"^\| `TURNBUS_(\w+)` \|[^|]*\| ([^|]*?) ?\|"
    listed = dict(re.findall(row, section("configuration.md", title), re.MULTILINE))
    ranges = {field.name: _range(field.type) for field in msgspec.structs.fields(kind)}
    ranges = {name: text for name, text in ranges.items() if text}
    assert len(ranges) >= 5
    assert {name: listed[name.upper()] for name in ranges} == ranges


def test_turn_detection_defaults_match() -> None:
    row = r"^\| `(turn_\w+)` \| (.+?) \| (.+?) \|"
    defaults = msgspec.structs.astuple(TurnSettings())
    assert re.findall(row, section("protocol.md", "Turn detection"), re.MULTILINE) == [
        (field.name, _range(field.type), f"{default:,g}")
        for field, default in zip(msgspec.structs.fields(TurnConfig), defaults, strict=True)
    ]


_ERROR = (
    r"(?:publisher\.error|provider_error|publish_error|_Fatal|_warn)\(\s*(?:[\w.]+ or )?\"(\w+)\""
)
"""A call that publishes a `session.error`, with its code."""


def test_errors_are_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", "".join(column(section("protocol.md", "Errors"), 0))))
    made = {f"session_{reason}" for reason in REASONS if reason != "empty"} | {
        "session_unusable",
        "session_internal",
    }
    made |= {f"audio_{reason}" for reason in ("malformed", "too_large", "empty")}
    for module in (ROOT / "worker").rglob("*.py"):
        if "local" not in module.relative_to(ROOT).parts:
            made |= set(re.findall(_ERROR, module.read_text("utf-8")))
    assert listed == made


def test_reasons_are_listed() -> None:
    text = section("protocol.md", "Reasons")
    kinds = {"turn.end": TurnEndReason, "audio.gap": GapReason, "session.ended": SessionEndReason}
    assert [*zip(column(text, 0), column(text, 1), strict=True)] == [
        (f"`{reason}`", f"`{kind}`")
        for kind, reasons in kinds.items()
        for reason in get_args(reasons)
    ]


def test_keys_are_listed() -> None:
    keys, lane, session = Keys("stt"), "LANE", "SESSION"
    named = {
        *(keys.sessions, keys.lost, keys.search, keys.lanes, keys.dead, keys.workers, keys.gate),
        *(keys.gate_holders, keys.sweep, keys.drain("CONSUMER"), keys.turns(lane)),
        keys.breaker("PROVIDER"),
        *(keys.audio(lane, session), keys.state(lane, session), keys.session_turns(lane, session)),
        *(keys.ingest("UUID"), keys.producer(lane, session)),
    }
    listed = set(re.findall(r"`(stt:[^`]+)`", "".join(column(section("protocol.md", "Keys"), 0))))
    assert listed == named


def test_extras_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_commands_are_listed() -> None:
    listed = set(
        re.findall(r"^\| `turnbus ([\w-]+)", section("cli.md", "Command line"), re.MULTILINE)
    )
    assert listed == set(_COMMANDS)


@pytest.mark.parametrize("command", re.findall(r"^## turnbus (.+)$", read("cli.md"), re.MULTILINE))
def test_options_are_listed(command: str) -> None:
    with redirect_stdout(StringIO()) as shown, pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    option = r"(?<![\w-])--[a-z][a-z-]*[a-z]"
    rows = "".join(column(section("cli.md", f"turnbus {command}"), 0))
    assert set(re.findall(option, rows)) == set(re.findall(option, shown.getvalue())) - {"--help"}


def test_each_command_has_a_section() -> None:
    sections = re.findall(r"^## turnbus (\S+)$", read("cli.md"), re.MULTILINE)
    assert sorted(sections) == sorted(_COMMANDS)


def test_events_are_listed() -> None:
    events = section("protocol.md", "Events")
    listed = dict(
        re.findall(r"^\| `((?:session|turn|audio)\.\w+)` \| ([^|]+) \|", events, re.MULTILINE)
    )
    common = {field.name for field in msgspec.structs.fields(EventBase)}
    assert common <= set(re.findall(r"`(\w+)`", events))
    for event in msgspec.inspect.type_info(Event).types:  # type: ignore[attr-defined]
        named = set(re.findall(r"`(\w+)`", listed.pop(str(event.tag))))
        assert named == {field.name for field in event.fields} - common
    assert not listed


def test_entry_fields_are_listed() -> None:
    session = section("protocol.md", "Session entry")
    named = set(re.findall(r"`([a-z_]+)`", session + section("protocol.md", "Turn detection")))
    wanted = set(SessionEntry.__struct_fields__) - {"config"} | set(TurnConfig.__struct_fields__)
    assert wanted <= named
    (rate,) = (
        each.type for each in msgspec.structs.fields(SessionEntry) if each.name == "sample_rate"
    )
    assert f"| `sample_rate` | Hz, {_range(rate)} |" in session
    named = set(re.findall(r"`([a-z_]+)`", section("protocol.md", "Audio entry")))
    assert set(AudioEntry.__struct_fields__) <= named
    named = set(re.findall(r"`([a-z_]+)`", section("protocol.md", "Dead letters")))
    assert set(DeadLetter.__struct_fields__) <= named


def test_consuming_covers_every_event() -> None:
    text = section("consuming.md", "What to do with each event")
    tags = {each.__struct_config__.tag for each in get_args(Event)}
    assert {each.strip("`") for each in column(text, 0)} == tags - {"session.started"}
    assert TurnEnd.__struct_config__.tag in tags


def test_metrics_are_generated() -> None:
    for page, table in tables().items():
        assert block(page, BLOCK) == table, "run `python -m tests.docs.metrics`"


def test_alerts_are_listed() -> None:
    rules = yaml.safe_load((ROOT / "deploy/observability/alerts.yaml").read_text("utf-8"))
    text = section("observability.md", "Alerts")
    assert [*zip(column(text, 0), column(text, 1), strict=True)] == [
        (f"`{rule['alert']}`", rule["labels"]["severity"])
        for group in rules["groups"]
        for rule in group["rules"]
    ]
