"""Pages of the documentation, with their sections, tables and generated blocks."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(
    path
    for folder in (
        ROOT,
        *(ROOT / name for name in ("deploy", "docs", "schemas", "tests", "worker")),
    )
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
"""Every Markdown file of the repository."""

_FENCE: Final = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
_GENERATED: Final = r"<!-- generated: {name} \(.*?\) -->\n(.*?)<!-- end of generated -->"


def read(page: str) -> str:
    """Return a page's text, by its path below `docs/`."""
    return (DOCS / page).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """Return a section's text, up to the next heading of any level."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", read(page), re.DOTALL | re.MULTILINE
    )
    assert found, f"no section {title} in {page}"
    return found[1]


def column(text: str, number: int) -> list[str]:
    """Return a column of the tables in a text, without their heads."""
    lines = text.splitlines()
    heads = {at - 1 for at, line in enumerate(lines) if re.fullmatch(r"\|[-:| ]+\|", line)}
    rows = [line for at, line in enumerate(lines) if line.startswith("| ") and at not in heads]
    return [
        re.split(r"(?<!\\)\|", row)[number + 1].strip()
        for row in rows
        if not re.fullmatch(r"\|[-:| ]+\|", row)
    ]


def without_code(text: str) -> str:
    """Return a text without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", text))


def block(page: str, name: str) -> str:
    """Return the text of a generated block."""
    return _find_block(page, name)[0]


def write_block(page: str, name: str, text: str) -> None:
    """Replace the text of a generated block."""
    _, start, end = _find_block(page, name)
    whole = read(page)
    (DOCS / page).write_text(whole[:start] + text + whole[end:], encoding="utf-8")


def without_blocks(text: str) -> str:
    """Return a text without its generated blocks."""
    return re.sub(_GENERATED.format(name=".*?"), "", text, flags=re.DOTALL)


def _find_block(page: str, name: str) -> tuple[str, int, int]:
    found = re.search(_GENERATED.format(name=re.escape(name)), read(page), re.DOTALL)
    assert found, f"no generated block {name} in {page}"
    return found[1], found.start(1), found.end(1)
