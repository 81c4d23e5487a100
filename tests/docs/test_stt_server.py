"""The page about the local turns server names existing faults and options."""

import re

from tests.docs.pages import read, section
from worker.local.emulator.faults import parse_fault


def test_documented_faults_are_valid() -> None:
    specs = re.findall(r"(?:--fault |[?&]fault=)([a-z][^\s&'`]*)", read("stt-server.md"))
    for column in re.findall(r"^\| (`[^|]*`) \|", _faults(), re.MULTILINE):
        specs += re.findall(r"`([^`]+)`", column)
    assert len(specs) > 20
    for spec in specs:
        parse_fault(spec.replace("@WHEN", "@mid-turn"))


def test_documented_moments_are_valid() -> None:
    moments = section("stt-server.md", "Faults").partition("| moment |")[2]
    names = re.findall(r"^\| `([^`]+)` \|", moments, re.MULTILINE)
    assert len(names) == 7
    for name in names:
        parse_fault(f"cut@{name}")


def test_documented_options_exist() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", read("stt-server.md")))
    # tests/docs/test_tables.py compares this section with the command.
    options = set(re.findall(r"--[a-z][a-z-]+", section("cli.md", "turnbus stt-server")))
    assert named <= options | {"--help"}


def _faults() -> str:
    table = section("stt-server.md", "Faults").partition("| fault |")[2]
    return table.partition("\n\n")[0]
