"""Commands as structs: fields are options, annotations are their help and checks."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from worker.cli.command import Argument, Command, Option
from worker.cli.operations import Drain, End
from worker.cli.push import Push
from worker.cli.stt_server import SttServer
from worker.cli.watch import Watch


class Sample(Command):
    """Show a sample.

    It has one option of each kind.

    examples:
      sample a.wav
    """

    files: Annotated[tuple[Path, ...], Argument("files", "FILE", parse=Path)] = ()
    rate: Annotated[int, Meta(ge=1, le=9), Option("rate", "HZ")] = 3
    speed: Annotated[float, Option("speed (default: as recorded)")] = 1.0
    mode: Annotated[Literal["slow", "fast"] | None, Option("mode", group="modes")] = None
    name: Annotated[tuple[str, ...], Option("a name")] = ("x",)
    dry: Annotated[bool, Option("only print")] = False
    loud: Annotated[bool, Option("with sound")] = True


def parsed(*argv: str) -> Command:
    return Sample.parser("sample").parse_command(argv)


def test_options_default_to_the_fields() -> None:
    assert parsed() == Sample()


def test_options_set_the_fields() -> None:
    line = "a b --rate 5 --speed 2 --mode FAST --name y --name z --dry --no-loud"
    assert parsed(*line.split()) == Sample(
        files=(Path("a"), Path("b")),
        rate=5,
        speed=2.0,
        mode="fast",
        name=("y", "z"),
        dry=True,
        loud=False,
    )


def test_help_has_defaults_groups_and_examples() -> None:
    shown = Sample.parser("sample").format_help()
    assert "\nShow a sample.\n\nIt has one option of each kind.\n" in shown
    assert "rate (default 3)" in shown
    assert shown.count("default") == 2
    assert "\nmodes:\n  --mode {slow,fast}  mode\n" in shown
    assert shown.endswith("\nexamples:\n  sample a.wav\n")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("--rate 10", "argument --rate: must be a whole number from 1 to 9"),
        ("--mode loud", "argument --mode: must be one of fast, slow"),
        ("--rat 1", "unrecognized arguments: --rat"),
    ],
)
def test_invalid_option_is_refused(
    line: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*line.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"sample: error: {fault}\n")


@pytest.mark.parametrize(
    ("command", "line", "name", "value"),
    [
        (Push, ["b.wav ", "--session", "s"], "file", "b.wav "),
        (Drain, [" w"], "worker", " w"),
        (SttServer, ["--fault", " cut"], "fault", (" cut",)),
        (SttServer, ["--model", "m "], "model", ("m ",)),
    ],
)
def test_white_space_of_names_is_kept(
    command: type[Command], line: list[str], name: str, value: object
) -> None:
    assert getattr(command.parser("x").parse_command(line), name) == value


@pytest.mark.parametrize(("command", "line"), [(Watch, ["--session", ""]), (End, [""])])
def test_invalid_session_id_gives_no_advice_for_producers(
    command: type[Command], line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parser("x").parse_command(line)
    assert capsys.readouterr().err.endswith(": must be 1 to 128 of A-Z a-z 0-9 . _ : -\n")
