"""`turnbus schema`: printed and written schemas are the same."""

from pathlib import Path

import msgspec
import pytest

from schemas.jsonschema import generate
from worker.cli.main import main

DOCUMENTS = {name: msgspec.json.decode(content) for name, content in generate()}


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = msgspec.json.decode(capsys.readouterr().out)
    assert {f"{name}.json": document for name, document in printed.items()} == DOCUMENTS


def test_schema_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new"
    assert main(["schema", "--write", str(directory)]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name: msgspec.json.decode(path.read_bytes()) for path in paths} == DOCUMENTS


def test_schema_reports_unwritable_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["schema", "--write", str(file)]) == 1
    assert capsys.readouterr().err == f"turnbus: {file}: cannot be written: File exists\n"
