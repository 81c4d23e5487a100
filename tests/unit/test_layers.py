"""Imports go one way, and the audio ledger is moved in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDER = (
    ("schemas",),
    ("worker.core",),
    ("worker.telemetry",),
    ("worker.bus", "worker.stt"),
    ("worker.supervisor", "worker.consume"),
    ("worker.session",),
    ("worker.leases",),
    ("worker.worker",),
    # These read a whole worker; the rest of `worker.telemetry` is below the sessions.
    ("worker.telemetry.metrics",),
    ("worker.telemetry.otlp", "worker.telemetry.prometheus"),
    ("worker.ingest",),
    ("worker.local",),
    ("worker.bench",),
    ("worker.cli",),
)
"""From the lowest to the highest; those of one row do not import each other."""

LEVELS = {name: level for level, row in enumerate(ORDER) for name in row}


def _place(module: str) -> str | None:
    """Return the package of the order that a module is in; None for a module beside them."""
    places = (name for name in LEVELS if f"{module}.".startswith(f"{name}."))
    return max(places, key=len, default=None)


def _imports(path: Path) -> Iterator[str]:
    """Yield the modules that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _callers(method: str) -> set[str]:
    """Return the modules of the product that call a method of this name on `ledger`."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("worker/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        and ast.unparse(node.func.value).endswith("ledger")
    }


def test_one_module_commits_audio_and_one_rewinds() -> None:
    assert _callers("commit_to") == {"worker/session/receiver.py"}
    assert _callers("rewind") == {"worker/session/state.py"}


def test_no_import_runs_upwards() -> None:
    upwards = []
    for path in [*ROOT.glob("worker/**/*.py"), *ROOT.glob("schemas/**/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        place = _place(module)
        for imported in _imports(path):
            other = _place(imported)
            if place and other and other != place and LEVELS[other] >= LEVELS[place]:
                upwards.append(f"{module} imports {imported}")
    assert upwards == []


def test_package_does_not_import_tests() -> None:
    files = [*ROOT.glob("worker/**/*.py"), *ROOT.glob("schemas/**/*.py")]
    importers = [
        str(path.relative_to(ROOT))
        for path in files
        if any(f"{module}.".startswith("tests.") for module in _imports(path))
    ]
    assert importers == [], "an installed wheel has no tests"
