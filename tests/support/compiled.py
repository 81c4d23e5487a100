"""The modules that `TURNBUS_COMPILE=1` compiles, as `pyproject.toml` lists them."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
HOOK: dict[str, list[str]] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"][
    "custom"
]


def compiled_modules() -> list[Path]:
    """Return their paths, relative to the root."""
    found = {path for pattern in HOOK["compiled"] for path in ROOT.glob(pattern)}
    return sorted(
        path.relative_to(ROOT) for path in found - {ROOT / p for p in HOOK["interpreted"]}
    )
