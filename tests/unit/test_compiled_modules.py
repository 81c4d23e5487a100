"""What mypyc cannot compile is in modules that stay interpreted."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec

from tests.support.compiled import HOOK, ROOT, compiled_modules


def test_interpreted_modules_exist() -> None:
    assert [path for path in HOOK["interpreted"] if not (ROOT / path).is_file()] == []


def test_compiled_modules_define_no_msgspec_class() -> None:
    """mypyc would ignore their keywords, `frozen=True` among them, without any warning."""
    wrong = [
        f"{path}: {defined.__name__}"
        for path in compiled_modules()
        for defined in _classes(_module(path))
        if issubclass(defined, msgspec.Struct)
    ]
    assert wrong == [], "move it to records.py, or list its module as interpreted in pyproject.toml"


def test_interpreted_classes_extend_no_compiled_class() -> None:
    """Python accepts such a class, and raises TypeError when the first object is made."""
    compiled = {_module(path).__name__ for path in compiled_modules()}
    interpreted = {path.relative_to(ROOT) for path in (ROOT / "worker").rglob("*.py")}
    wrong = [
        f"{path}: {defined.__name__}"
        for path in sorted(interpreted - set(compiled_modules()) - _PROGRAMS)
        for defined in _classes(_module(path))
        if not compiled.isdisjoint(base.__module__ for base in defined.__mro__[1:])
    ]
    assert wrong == [], "compile its module too, in pyproject.toml"


_PROGRAMS = {Path("worker/__main__.py")}
"""Modules that cannot be imported without running them."""


def _module(path: Path) -> ModuleType:
    return import_module(".".join(path.with_suffix("").parts))


def _classes(module: ModuleType) -> Iterator[type]:
    """Yield the classes that a module defines."""
    for _, defined in inspect.getmembers(module, inspect.isclass):
        if defined.__module__ == module.__name__:
            yield defined
