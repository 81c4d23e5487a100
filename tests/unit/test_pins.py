"""The pins of `pyproject.toml`: a clone installs the same versions later."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PINS: list[str] = PROJECT["tool"]["uv"]["constraint-dependencies"]
BUILD_PINS: list[str] = PROJECT["tool"]["uv"]["build-constraint-dependencies"]


def _pinned(lines: Iterable[str], **environment: str) -> dict[str, str]:
    """Return the version of each package as pinned for this Python and system."""
    requirements = map(Requirement, lines)
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in requirements
        if each.marker is None or each.marker.evaluate(environment)
    }


def _installed(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the version of each package that these requirements install, including themselves."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(each, "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        package = distribution(requirement.name)
        name = canonicalize_name(requirement.name)
        found[name] = package.version
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(each), wanted) for each in package.requires or ()]
    return found


@pytest.mark.parametrize("pins", [PINS, BUILD_PINS], ids=["installed", "build"])
def test_pins_are_names_and_versions(pins: list[str]) -> None:
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+(; python_version [<>]=? '3\.\d+')?", pin)
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(names)


def test_pins_match_installed_versions() -> None:
    groups: Mapping[str, list[str]] = PROJECT["dependency-groups"]
    wanted = map(Requirement, groups["dev"])
    installed = _installed(wanted)
    del installed[PROJECT["project"]["name"]]
    pinned = _pinned(PINS)
    assert installed == {name: pinned.get(name, "not pinned") for name in installed}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_pins_satisfy_requirements_on_each_python(python: str) -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    wanted += [each for extra in project["optional-dependencies"].values() for each in extra]
    pinned = _pinned(PINS, python_version=python)
    for each in map(Requirement, wanted):
        if each.name != project["name"]:
            assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


@pytest.mark.parametrize(
    ("file", "pins"), [("runtime.txt", PINS), ("local.txt", PINS), ("build.txt", BUILD_PINS)]
)
def test_image_has_same_pins(file: str, pins: list[str]) -> None:
    text = (ROOT / "deploy" / "image" / file).read_text("ascii")
    image = {
        pin.partition(";")[0].strip() for pin in re.findall(r"^(\S+==.*?) \\$", text, re.MULTILINE)
    }
    assert image
    assert image <= {pin.partition(";")[0] for pin in pins}
