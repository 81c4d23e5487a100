"""What mypyc cannot compile is in modules that stay interpreted."""

import inspect
from importlib import import_module

import msgspec

from tests.support.compiled import HOOK, ROOT, compiled_modules


def test_interpreted_modules_exist() -> None:
    assert [path for path in HOOK["interpreted"] if not (ROOT / path).is_file()] == []


def test_compiled_modules_define_no_msgspec_class() -> None:
    """mypyc would ignore their keywords, `frozen=True` among them, without any warning."""
    wrong = []
    for path in compiled_modules():
        module = import_module(".".join(path.with_suffix("").parts))
        wrong += [
            f"{path}: {name}"
            for name, defined in inspect.getmembers(module, inspect.isclass)
            if issubclass(defined, msgspec.Struct) and defined.__module__ == module.__name__
        ]
    assert wrong == [], "move it to records.py, or list its module as interpreted in pyproject.toml"
